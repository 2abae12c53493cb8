"""Processor time of `dsc compile deepseek-v3`: a whole process, with the formatter that it starts, a new one each time.

    python tests/benchmarks/compile_time.py [--rounds N] [--against CHECKOUT] [--out FILE.jsonl]

With a checkout of another commit, rounds alternate between the two. A first run of each, which compiles Python modules
and templates, is not counted.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SPEC = "deepseek-v3"
HERE = Path(__file__).resolve().parents[2]
PROGRAM = "from dsc.compiler.cli import main; main()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the root of another checkout")
    parser.add_argument("--out", type=Path, help="append the results as lines of JSON")
    arguments = parser.parse_args()
    checkouts = [*([arguments.against.resolve()] if arguments.against else []), HERE]
    with tempfile.TemporaryDirectory() as cache:
        for checkout in checkouts:
            processor_seconds(checkout, cache)
        rounds = [[processor_seconds(checkout, cache) for checkout in checkouts] for _ in range(arguments.rounds)]
    for checkout, seconds in zip(checkouts, zip(*rounds, strict=True), strict=True):
        result = {
            "benchmark": "compile_time",
            "spec": SPEC,
            "commit": commit(checkout),
            "processor_seconds": round(statistics.median(seconds), 3),
            "range": [round(min(seconds), 3), round(max(seconds), 3)],
            "rounds": arguments.rounds,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            "load": round(os.getloadavg()[0], 1),
            "date": datetime.date.today().isoformat(),
        }
        print(json.dumps(result), flush=True)
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(result) + "\n")


def processor_seconds(checkout: Path, cache: str) -> float:
    """User and system time of one process and its children. Compiled modules are kept in `cache`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / ".dev"), "PYTHONPYCACHEPREFIX": cache}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROGRAM, "compile", SPEC, "-o", f"{folder}/package"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()

"""Wall time of `dsc compile deepseek-v3`, a new process each time.

python tests/benchmarks/compile_time.py [--rounds N] [--out FILE.jsonl]
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = "deepseek-v3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_args()
    command = [str(Path(sys.executable).with_name("dsc")), "compile", SPEC, "-o"]
    seconds = []
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run([*command, f"{folder}/package"], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
    low, median, high = statistics.quantiles(seconds, n=4)
    result = {
        "benchmark": "compile_time",
        "spec": SPEC,
        "seconds": round(median, 3),
        "quartiles": [round(low, 3), round(high, 3)],
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()

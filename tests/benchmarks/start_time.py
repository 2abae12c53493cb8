"""Processor time of what should feel instant: `dsc --help`, every verb's help, `dsc zoo`, completion of a model's name.

python tests/benchmarks/start_time.py [--rounds N] [--out FILE.jsonl]

A new process each time. The least of the rounds counts: what a process needs does not vary, only what disturbs it does.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

from dsc.compiler.cli.group import VERBS

COMPLETION = {"_DSC_COMPLETE": "bash_complete", "COMP_WORDS": "dsc stats deepseek-v", "COMP_CWORD": "2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the result as a line of JSON")
    arguments = parser.parse_args()
    runs: dict[str, tuple[list[str], dict[str, str]]] = {
        "--help": (["--help"], {}),
        **{f"{verb} --help": ([verb, "--help"], {}) for verb in VERBS},
        "zoo": (["zoo"], {}),
        "completion of a name": ([], COMPLETION),
    }
    seconds = {name: round(min(processor_time(*run) for _ in range(arguments.rounds)), 3) for name, run in runs.items()}
    result = {
        "benchmark": "start_time",
        "seconds": seconds,
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps(result))
    if arguments.out:
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")


def processor_time(command: list[str], environment: dict[str, str]) -> float:
    """Seconds, user and system, of one run of dsc."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    dsc = str(Path(sys.executable).with_name("dsc"))
    subprocess.run([dsc, *command], check=True, stdout=subprocess.DEVNULL, env=os.environ | environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

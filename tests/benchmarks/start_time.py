"""Processor time of what should feel instant: `dsc --help`, every verb's help, `dsc zoo`, completion of a model's name,
and the first token of the package of tiny, beside that of importing torch, which it cannot do without.

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
import tempfile
from pathlib import Path

from dsc.compiler.cli.group import VERBS

COMPLETION = {"_DSC_COMPLETE": "bash_complete", "COMP_WORDS": "dsc stats deepseek-v", "COMP_CWORD": "2"}

SAVE = "from tiny.checkpoint import save_hf; from tiny.model import Model; save_hf(Model(), 'checkpoint')"
FIRST_TOKEN = ["tiny.infer.generate", "--checkpoint", "checkpoint", "--max-new-tokens", "1", "def "]


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
    dsc = str(Path(sys.executable).with_name("dsc"))
    commands = {name: ([dsc, *command], environment) for name, (command, environment) in runs.items()}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([dsc, "compile", "tiny"], check=True, cwd=folder, stdout=subprocess.DEVNULL)
        subprocess.run([sys.executable, "-c", SAVE], check=True, cwd=folder)
        commands["import torch"] = ([sys.executable, "-c", "import torch"], {})
        commands["first token of tiny"] = ([sys.executable, "-m", *FIRST_TOKEN], {})
        seconds = {
            name: round(min(processor_time(*run, folder) for _ in range(arguments.rounds)), 3)
            for name, run in commands.items()
        }
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


def processor_time(command: list[str], environment: dict[str, str], folder: str) -> float:
    """Seconds, user and system, of one run of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()

"""Run by torchrun: a command of a package in this process, and the threads of groups that are left when it is over.

    torchrun --nproc-per-node N leaving.py FOLDER MODULE FUNCTION ARGUMENTS

The function is given what the module reads of the arguments, a list in JSON, if it takes something. Each rank writes
the names of threads that it has then to FOLDER/threads_RANK.json.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path


def threads() -> list[str]:
    """Of this process, those of gloo."""
    names = (path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))
    return [name for name in names if "gloo" in name]


def main(folder: str, module_name: str, function: str, arguments: str) -> None:
    sys.path.insert(0, folder)
    sys.argv[1:] = json.loads(arguments)
    module = import_module(module_name)
    run = getattr(module, function)
    run(*([module.parse_arguments()] if hasattr(module, "parse_arguments") else []))
    Path(folder, f"threads_{os.environ['RANK']}.json").write_text(json.dumps(threads()))


if __name__ == "__main__":
    main(*sys.argv[1:])

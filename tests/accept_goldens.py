"""Accept what the compiler emits today: rewrites the packages in generated/. Run by `make goldens`; review the diff."""

import shutil
from pathlib import Path

from dsc.compiler.driver import compile_spec
from dsc.compiler.emit.write import write

GENERATED = Path(__file__).resolve().parents[1] / "generated"
SPECS = ("tiny", "deepseek-v2-lite", "deepseek-v3", "llama-3.1-8b")


def accept() -> None:
    for folder in GENERATED.iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    for name in SPECS:
        spec, files = compile_spec(name)
        write(files, GENERATED / spec.package_name)


if __name__ == "__main__":
    accept()

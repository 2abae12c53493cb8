"""Names that a package cannot have: whatever an emitted package ends up importing would be hidden by it."""

import subprocess
import sys

from dsc.spec.checks import IMPORTED, refused_name

# What training, generation and compilation import, and a lazy part or two of it.
PROGRAM = """
import sys
import numpy, rich.live, rich.progress, rich.table, safetensors.torch, tokenizers, torch
import torch._dynamo, torch._inductor.compile_fx, torch.distributed.checkpoint, torch.distributed.fsdp, torch.utils.data
print(*sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names))
"""


def test_no_package_hides_what_emitted_code_imports() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    imported = {name for name in run.stdout.split() if not name.startswith("_") and name != "sitecustomize"}
    assert {"torch", "typing_extensions", "sympy"} <= imported <= IMPORTED, imported - IMPORTED


def test_names_of_libraries_are_refused_in_every_spelling() -> None:
    for name in ("typing-extensions", "typing.extensions", "typing_extensions", "jinja2", "mpmath", "opt-einsum"):
        assert refused_name(name) is not None, name
    for name in ("torch-1b", "my-numpy", "deepseek-v3"):
        assert refused_name(name) is None, name

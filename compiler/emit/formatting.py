"""The last step of emission: the pinned ruff formatter, over all files in one run."""

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ruff import find_ruff_bin


class FormatError(AssertionError):
    """A template printed invalid Python: a bug of ours, shown with ruff's message."""


def format_files(files: Mapping[str, str]) -> dict[str, str]:
    """Python files formatted, others as they are. The caller's own ruff settings are ignored."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        command = [find_ruff_bin(), "format", "--isolated", "--no-cache", "--line-length=120", "--target-version=py311"]
        run = subprocess.run([*command, folder], capture_output=True, text=True, check=False)
        if run.returncode:
            raise FormatError(run.stderr)
        return {name: Path(folder, name).read_text(encoding="utf-8") for name in files}

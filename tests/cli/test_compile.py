"""dsc compile: what it writes, what it refuses, what --check says."""

import re
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.driver import compile_spec

FILES = compile_spec("tiny")[1]


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_writes_the_package_and_says_so(run: Any) -> None:
    said, after = run("compile", "tiny").stdout.splitlines()
    assert said == f"tiny: {len(FILES)} files written, 0 unchanged"
    assert after == "next: read tiny/README.md; dsc verify tiny; python -m tiny.train.train --help"
    assert contents(Path("tiny")) == FILES
    assert run("compile", "tiny").stdout.startswith(f"tiny: 0 files written, {len(FILES)} unchanged\n")
    assert "cd 'a b' && python -m tiny.train.train" in run("compile", "tiny", "-o", "a b/tiny").stdout


def test_output_folder_of_any_name(run: Any) -> None:
    result = run("compile", "tiny", "-o", "a/tiny-2")
    assert contents(Path("a/tiny-2")) == FILES
    assert "cannot import a folder named 'tiny-2'" in result.stderr
    assert not run("compile", "tiny", "-o", "a/tiny_2").stderr


def test_output_is_a_file(run: Any) -> None:
    Path("notes").write_text("mine")
    assert "notes is a file, not a folder" in run("compile", "tiny", "-o", "notes", code=2).stderr


def test_edits_are_kept_until_forced(run: Any) -> None:
    run("compile", "tiny")
    for name in ("model.py", "infer/engine.py"):
        with (Path("tiny") / name).open("a") as file:
            file.write("# mine\n")
    Path("tiny/checkpoint.py").unlink()
    said = run("compile", "tiny").stdout
    assert f"1 file written, {len(FILES) - 3} unchanged, 2 edited by hand" in said
    for name in ("model.py", "infer/engine.py"):
        assert f"\nkept: tiny/{name}\n" in said
        assert (Path("tiny") / name).read_text() == FILES[name] + "# mine\n"
    assert "2 edited by hand" in run("compile", "tiny", "--check", code=1).stdout
    run("compile", "tiny", "--force")
    assert contents(Path("tiny")) == FILES


@pytest.mark.needs_git
def test_edits_meet_a_changed_spec(run: Any) -> None:
    """One is merged, one clashes; the clash is told by file and line, and gone once its file is."""
    spec, dims, model = Path("spec.yaml"), Path("p/dims.py"), Path("p/model.py")
    run("shrink", "tiny", "-o", spec)
    run("compile", spec, "-o", "p")
    dims.write_text(dims.read_text().replace("HIDDEN_SIZE = 64  # hidden_size", "HIDDEN_SIZE = 96  # mine"))
    model.write_text(model.read_text().replace("import torch\n", "import torch\n\n# mine\n", 1))
    spec.write_text(spec.read_text().replace("hidden_size: 64", "hidden_size: 72").replace("repeat: 1", "repeat: 2"))
    result = run("compile", spec, "-o", "p", code=1)
    assert "\nclash: p/dims.py\n" in result.stdout and "next:" not in result.stdout
    shown = Path("p/dims.py.merge")
    line = shown.read_text().splitlines().index("<<<<<<< yours") + 1
    assert f"p/dims.py.merge:{line}:1: error[DSC043]" in result.stderr
    assert "HIDDEN_SIZE = 96  # mine" in dims.read_text()
    assert "# mine\n" in model.read_text()
    assert f"p/dims.py.merge:{line}:1: error[DSC043]" in run("compile", spec, "-o", "p", code=1).stderr
    resolved = re.sub(
        r"<<<<<<< yours\n(.*?)\|{7}.*?>>>>>>> as emitted now\n", r"\1", shown.read_text(), flags=re.DOTALL
    )
    dims.write_text(resolved)
    shown.unlink()
    assert "kept: p/dims.py\n" in run("compile", spec, "-o", "p").stdout
    assert dims.read_text() == resolved


def test_an_edit_without_its_original_is_refused(run: Any) -> None:
    Path("tiny").mkdir()
    Path("tiny/model.py").write_text("# mine\n")
    result = run("compile", "tiny", code=1)
    assert "error[DSC040]: tiny/model.py was edited by hand" in result.stderr and "--force" in result.stderr
    assert contents(Path("tiny")) == {"model.py": "# mine\n"}, "nothing is written"


def test_a_link_out_of_the_folder_is_bad_input(run: Any) -> None:
    Path("elsewhere").mkdir()
    Path("tiny").mkdir()
    Path("tiny/infer").symlink_to(Path("elsewhere").resolve())
    assert "error[DSC041]" in run("compile", "tiny", "--force", code=2).stderr
    assert not list(Path("elsewhere").iterdir())
    assert [path.name for path in Path("tiny").iterdir()] == ["infer"], "nothing is written"


def test_check_is_quiet_about_a_package_that_is_up_to_date(run: Any) -> None:
    run("compile", "tiny")
    assert run("compile", "tiny", "--check").stdout == f"up to date: 0 files to write, {len(FILES)} unchanged\n"


def test_check_of_a_package_that_is_not_there(run: Any) -> None:
    result = run("compile", "tiny", "--check", code=1)
    assert result.stdout.startswith(f"drift: {len(FILES)} files to write, 0 unchanged\n")
    for name in FILES:
        assert f"missing: tiny/{name}\n" in result.stdout
    assert result.stdout.endswith("\nfix: dsc compile tiny\n")
    assert not Path("tiny").exists()


def test_check_names_every_drift_and_writes_nothing(run: Any) -> None:
    run("shrink", "tiny", "-o", "spec.yaml")
    run("compile", "spec.yaml", "-o", "my package")
    spec = Path("spec.yaml")
    spec.write_text(spec.read_text().replace("hidden_size: 64", "hidden_size: 72"))
    package = Path("my package")
    (package / "train" / "data.py").unlink()
    (package / "checkpoint.py").write_text("# mine\n")
    before = contents(package)
    result = run("compile", "spec.yaml", "-o", "my package", "--check", code=1)
    assert "-HIDDEN_SIZE = 64  # hidden_size\n+HIDDEN_SIZE = 72  # hidden_size\n" in result.stdout
    assert "sha256" not in result.stdout, "hashes only say that something else differs"
    assert "missing: my package/train/data.py\n" in result.stdout
    assert "changed: my package/dims.py\n" in result.stdout
    assert "edited by hand: my package/checkpoint.py\n" in result.stdout
    assert result.stdout.endswith("fix: dsc compile spec.yaml -o 'my package' --force\n")
    assert contents(package) == before


def test_files_that_are_no_longer_emitted_are_stale_and_deleted(run: Any) -> None:
    run("compile", "tiny", "-o", "package")  # a mixture of experts, with a product for them
    result = run("compile", "minicpm3-4b", "-o", "package", "--check", code=1)
    assert "stale: package/kernels/grouped_mm.py\n" in result.stdout
    assert "3 to delete" in result.stdout
    assert "3 deleted" in run("compile", "minicpm3-4b", "-o", "package").stdout
    assert not Path("package/kernels/grouped_mm.py").exists()


def test_files_of_the_user_are_no_drift(run: Any) -> None:
    run("compile", "tiny")
    Path("tiny/notes.bin").write_bytes(b"\xff")
    run("compile", "tiny", "--check")
    run("compile", "tiny", "--force")
    assert Path("tiny/notes.bin").exists()

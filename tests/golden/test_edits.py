"""Edits by hand, when their package is emitted again: merged or left alone, never lost."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsc.compiler.driver import build, emit, emit_again
from dsc.compiler.emit.compare import CLASH, compare
from dsc.compiler.emit.edits import Edits
from dsc.compiler.emit.lock import LOCK, read_lock, sha256
from dsc.compiler.emit.write import write
from dsc.spec.errors import DscError
from dsc.spec.loader import load

Print = Callable[[str, str], Mapping[str, str]]


def package(text: str | None, **others: str) -> dict[str, str]:
    """One file, m.py, and a lock whose spec is that text; so it can be printed again."""
    files = {**({} if text is None else {"m.py": text}), **others}
    lock = {"files": {name: {"sha256": sha256(one)} for name, one in files.items()}, "spec": files, "command": ""}
    return {**files, LOCK: json.dumps(lock)}


def print_again(spec: str, command: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(spec)
    return found


def emitted_again(folder: Path, now: str | None, printer: Print = print_again, **others: str) -> Edits:
    return write(package(now, **others), folder, emit_again=printer).edits


BEFORE = "".join(f"line_{number} = {number}\n" for number in range(9))
NOW = BEFORE.replace("line_1 = 1", "line_1 = 100")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(package(BEFORE), tmp_path)
    return tmp_path


@pytest.mark.needs_git
@pytest.mark.parametrize("edit", ["first = 0\n" + BEFORE, BEFORE + "last = 10\n", BEFORE.replace("line_7 = 7\n", "")])
def test_an_edit_is_kept_then_merged(folder: Path, edit: str) -> None:
    path = folder / "m.py"
    path.write_text(edit)
    edits = emitted_again(folder, BEFORE)
    assert (edits.kept, path.read_text()) == (["m.py"], edit)
    edits = emitted_again(folder, NOW)
    assert (list(edits.merged), path.read_text()) == (["m.py"], edit.replace("line_1 = 1\n", "line_1 = 100\n"))
    assert emitted_again(folder, NOW).kept == ["m.py"], "and again, from what was emitted last"
    assert emitted_again(folder, BEFORE).merged
    assert path.read_text() == edit
    assert [path.name for path in folder.iterdir() if path.name not in ("m.py", LOCK)] == []


@pytest.mark.needs_git
def test_a_clash_is_shown_beside_the_file_and_stops_the_next_write(folder: Path) -> None:
    mine = BEFORE.replace("line_1 = 1", "line_1 = 7").replace("line_8 = 8", "line_8 = 80")
    (folder / "m.py").write_text(mine)
    edits = emitted_again(folder, NOW, **{"new.py": "new = 1\n"})
    assert edits.clashing["m.py"].clashes == (2,)
    assert (folder / "m.py").read_text() == mine
    assert (folder / "new.py").exists(), "what does not clash is written"
    shown = (folder / f"m.py{CLASH}").read_text()
    sides = (
        "<<<<<<< yours\nline_1 = 7\n||||||| as emitted before\nline_1 = 1\n=======\nline_1 = 100\n>>>>>>> as emitted"
    )
    assert sides in shown and "line_8 = 80\n" in shown

    with pytest.raises(DscError, match="DSC043") as error:
        emitted_again(folder, "line_1 = 2\n")
    (finding,) = error.value.findings
    assert finding.position is not None and (finding.position.file, finding.position.line) == (
        f"{folder.as_posix()}/m.py{CLASH}",
        2,
    )
    assert (folder / "m.py").read_text() == mine

    resolved = NOW.replace("line_1 = 100", "line_1 = 107")
    (folder / f"m.py{CLASH}").unlink()
    (folder / "m.py").write_text(resolved)
    assert emitted_again(folder, NOW).kept == ["m.py"]
    assert emitted_again(folder, NOW + "more = 1\n").merged
    assert (folder / "m.py").read_text() == resolved + "more = 1\n"


@pytest.mark.needs_git
def test_force_takes_what_is_emitted_and_leaves_no_clash(folder: Path) -> None:
    (folder / "m.py").write_text(BEFORE.replace("line_1 = 1", "line_1 = 7"))
    emitted_again(folder, NOW)
    write(package(NOW), folder, force=True)
    assert (folder / "m.py").read_text() == NOW
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, "m.py"]


def test_an_edited_file_that_is_not_emitted_any_more_stays(folder: Path) -> None:
    (folder / "m.py").write_text(BEFORE + "mine = 1\n")
    with pytest.raises(DscError, match=r"m\.py was edited by hand .* not emitted any more"):
        emitted_again(folder, None)
    assert (folder / "m.py").read_text() == BEFORE + "mine = 1\n"


@pytest.mark.needs_git
def test_bytes_that_are_no_text_are_left_alone(folder: Path) -> None:
    (folder / "m.py").write_bytes(b"\x00\xff" + BEFORE.encode())
    with pytest.raises(DscError, match="DSC040"):
        emitted_again(folder, NOW)
    (folder / "m.py").write_bytes(BEFORE.encode() + b"# caf\xe9\n")
    emitted_again(folder, NOW)
    assert (folder / "m.py").read_bytes() == NOW.encode() + b"# caf\xe9\n", "git merges any encoding"


def test_without_git_an_edit_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m.py").write_text(BEFORE + "mine = 1\n")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DscError, match="git, which merges edits, did not run"):
        emitted_again(folder, NOW)
    assert emitted_again(folder, BEFORE).kept == ["m.py"], "where nothing is to merge, git is not needed"


@pytest.mark.needs_git
def test_another_version_of_the_compiler_finds_the_original_in_git(folder: Path) -> None:
    def other_version(spec: str, command: str) -> dict[str, str]:
        return {"m.py": "printed otherwise\n"}

    def git(*words: str) -> None:
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t", *words], cwd=folder, check=True)

    (folder / "m.py").write_text(BEFORE + "mine = 1\n")
    with pytest.raises(DscError, match="how it was emitted is not known"):
        emitted_again(folder, NOW, other_version)
    git("init", "-q")
    for text in (BEFORE, BEFORE + "mine = 1\n"):
        (folder / "m.py").write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", "m")
    assert emitted_again(folder, NOW, other_version).merged
    assert (folder / "m.py").read_text() == NOW + "mine = 1\n"


@pytest.mark.needs_git
@pytest.mark.parametrize("moved", [0, 1])
@pytest.mark.parametrize("mine", [BEFORE + "mine = 1\n", BEFORE.replace("line_1 = 1", "line_1 = 7")])
def test_a_merge_that_was_killed_is_finished_by_the_next(folder: Path, mine: str, moved: int) -> None:
    """Whether or not it had moved the first file: as if it had not been killed."""
    (folder / "m.py").write_text(mine)
    write(package(NOW), folder, emit_again=print_again)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    name = next(name for name in (f"m.py{CLASH}", "m.py") if name in after)

    for path in folder.iterdir():
        path.unlink()
    write(package(BEFORE), folder)
    (folder / "m.py").write_text(mine)
    staging = folder / ".dsc-killed"
    staging.mkdir()
    for staged in (name, LOCK):
        (staging / staged).write_bytes(after[staged])
    if moved:
        (staging / name).rename(folder / name)
    if name == "m.py" or not moved:
        write(package(NOW), folder, emit_again=print_again)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == after
    else:
        with pytest.raises(DscError, match="DSC043"):
            write(package(NOW), folder, emit_again=print_again)
        assert (folder / "m.py").read_text() == mine


def lines(words: str) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from([f"{word}\n" for word in words]), max_size=12)


@pytest.mark.needs_git
@settings(max_examples=150, deadline=None)
@given(before=lines("abcdef"), mine=lines("abcdefxyz"), now=lines("abcdefpqr"))
def test_no_line_of_an_edit_is_lost(before: list[str], mine: list[str], now: list[str]) -> None:
    """Whatever is edited and emitted: the file is untouched, or holds every line that is new on either side; so does
    what shows a clash."""
    new = {*mine, *now} - set(before)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(package("".join(before)), folder)
        (folder / "m.py").write_text("".join(mine))
        edits = emitted_again(folder, "".join(now))
        left = (folder / "m.py").read_text().splitlines(True)
        if edits.merged:
            assert new <= set(left)
        elif edits.clashing:
            assert left == mine
            assert new <= set((folder / f"m.py{CLASH}").read_text().splitlines(True))
        elif edits.kept:
            assert (left, before) == (mine, now)
        else:
            assert left == now and (mine in (before, now))


def test_a_lock_prints_its_package_again(tmp_path: Path) -> None:
    """The real one: every file, headers with the command of a spec elsewhere among them."""
    files = emit(build(load("tiny")), command="dsc compile ../a.yaml")
    write(files, tmp_path)
    emission = read_lock(tmp_path / LOCK)
    assert emission is not None
    assert emit_again(emission.spec, emission.command) == files
    assert emit_again("null", "") == emit_again('{"name": "x"}', "") == {}
    assert not compare(files, tmp_path).drift

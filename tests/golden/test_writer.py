"""Writing a package: only what differs, each file whole or not at all, never over an edit, never outside the folder."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dsc.compiler.emit import write as writer
from dsc.compiler.emit.compare import compare
from dsc.compiler.emit.lock import LOCK, sha256
from dsc.compiler.emit.write import write
from dsc.spec.errors import DscError


def package(**files: str) -> dict[str, str]:
    """Some files and the lock that belongs to them; `a_py` is a.py, `infer__b_py` infer/b.py."""
    named = {name.replace("__", "/").replace("_py", ".py"): text for name, text in files.items()}
    lock = {"files": {name: {"sha256": sha256(text)} for name, text in named.items()}}
    return {**named, LOCK: json.dumps(lock)}


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of three files as it was emitted, all of them long ago."""
    target = tmp_path / "package"
    write(package(a_py="a = 1\n", b_py="b = 1\n", infer__c_py="c = 1\n"), target)
    for path in target.rglob("*"):
        os.utime(path, (1, 1))
    return target


def test_a_first_write_creates_everything(tmp_path: Path) -> None:
    files = package(a_py="a = 1\n", infer__c_py="c = 1\n")
    changes = write(files, tmp_path / "not" / "there").changes
    assert contents(tmp_path / "not" / "there") == files
    assert set(changes.new) == set(files) and changes.drift


def test_writing_again_touches_nothing(folder: Path) -> None:
    changes = write(contents(folder), folder).changes
    assert not changes.drift and len(changes.unchanged) == 4
    assert {path.stat().st_mtime for path in folder.rglob("*") if path.is_file()} == {1}


def test_only_what_differs_is_written(folder: Path) -> None:
    files = package(a_py="a = 2\n", b_py="b = 1\n", infer__c_py="c = 1\n")
    changes = write(files, folder).changes
    assert changes.changed == ("a.py", LOCK)
    assert contents(folder) == files
    assert {path.name for path in folder.rglob("*") if path.is_file() and path.stat().st_mtime == 1} == {"b.py", "c.py"}


def test_comparing_writes_nothing(folder: Path) -> None:
    before = contents(folder)
    assert compare(package(a_py="a = 2\n", d_py="d = 1\n"), folder).drift
    assert contents(folder) == before


def test_what_is_not_emitted_any_more_is_removed(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    changes = write(package(a_py="a = 1\n"), folder).changes
    assert changes.stale == ("b.py", "infer/c.py")
    assert set(contents(folder)) == {"a.py", "notes.txt", LOCK}


@pytest.mark.parametrize("edited", ["b.py", "infer/c.py"])
def test_an_edited_file_stops_the_whole_write(folder: Path, edited: str) -> None:
    (folder / edited).write_text("mine = 1\n")
    before = contents(folder)
    files = package(a_py="a = 2\n", b_py="b = 2\n")  # infer/c.py would be removed
    with pytest.raises(DscError) as error:
        write(files, folder)
    assert [finding.code for finding in error.value.findings] == ["DSC040"]
    assert edited in error.value.findings[0].message
    assert contents(folder) == before

    write(files, folder, force=True)
    assert contents(folder) == files


def test_every_edited_file_is_named(folder: Path) -> None:
    for name in ("a.py", "b.py"):
        (folder / name).write_text("mine = 1\n")
    with pytest.raises(DscError) as error:
        write(package(a_py="a = 2\n", b_py="b = 2\n"), folder)
    assert len(error.value.findings) == 2


def test_a_file_that_was_never_ours_is_an_edit(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("mine = 1\n")
    with pytest.raises(DscError):
        write(package(a_py="a = 1\n"), tmp_path)
    assert contents(tmp_path) == {"a.py": "mine = 1\n"}


@pytest.mark.parametrize("lock", ["", "[]", "{}", '{"files": 3}', '{"files": {"a.py": 7}}', "\udcff"])
def test_a_broken_lock_makes_every_difference_an_edit(folder: Path, lock: str) -> None:
    (folder / LOCK).write_bytes(lock.encode("utf-8", "surrogateescape"))
    with pytest.raises(DscError):
        write(package(a_py="a = 2\n"), folder)


def test_a_crash_leaves_the_old_file_and_no_rest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def crash(source: str, target: str) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        write(package(a_py="a = 2\n", b_py="b = 1\n", infer__c_py="c = 1\n"), folder)
    assert contents(folder) == before


def test_the_lock_is_written_last(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So after a crash the folder differs from its lock, and the next write goes on."""
    written: list[str] = []
    replace = os.replace

    def note(source: str, target: Path) -> None:
        written.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", note)
    write(package(z_py="z = 1\n", a_py="a = 2\n", b_py="b = 1\n", infer__c_py="c = 1\n"), folder)
    assert written == ["a.py", "z.py", LOCK]


def test_files_are_readable_by_everyone(folder: Path) -> None:
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}


@pytest.mark.parametrize("name", ["a.py", "infer", "b.py"])
def test_a_link_out_of_the_folder_is_refused_before_anything_is_written(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "c.py").write_text("c = 1\n")
    inside = folder / name
    target = outside if inside.is_dir() else outside / "c.py"
    for path in sorted(inside.rglob("*")) if inside.is_dir() else [inside]:
        path.unlink()
    if inside.is_dir():
        inside.rmdir()
    inside.symlink_to(target)
    before = contents(folder)
    with pytest.raises(DscError) as error:
        write(package(a_py="a = 2\n", b_py="b = 2\n", infer__c_py="c = 2\n"), folder, force=True)
    assert {finding.code for finding in error.value.findings} == {"DSC041"}
    assert (outside / "c.py").read_text() == "c = 1\n"
    assert contents(folder) == before


def test_a_lock_cannot_remove_files_outside(folder: Path) -> None:
    outside = folder.parent / "precious.txt"
    outside.write_text("mine")
    (folder / LOCK).write_text(json.dumps({"files": {"../precious.txt": {"sha256": sha256("mine")}}}))
    with pytest.raises(DscError):
        write(contents(folder), folder, force=True)
    assert outside.read_text() == "mine"


def test_a_folder_reached_by_a_link_is_fine(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    write(package(a_py="a = 2\n"), link)
    assert (folder / "a.py").read_text() == "a = 2\n"


# --- two writes at once, and writes that are killed

A = package(a_py="a = 1\n", both_py="both = 'a'\n", infer__c_py="c = 1\n", z_py="z = 1\n")
B = package(b_py="b = 2\n", both_py="both = 'b'\n", infer__d_py="d = 2\n", z_py="z = 2\n")


def in_a_process(files: dict[str, str], folder: Path, delay: float = 0.0, kill_after: int | None = None) -> int:
    """A write in a process of its own, slow at every step on the folder, killed after some of them; its id."""
    process = os.fork()
    if process == 0:
        steps = 0

        def slowed(call: Callable[..., object]) -> Callable[..., object]:
            def step(*arguments: object, **options: object) -> object:
                nonlocal steps
                if steps == kill_after:
                    os._exit(9)
                steps += 1
                time.sleep(delay)
                return call(*arguments, **options)

            return step

        os.replace, os.unlink = slowed(os.replace), slowed(os.unlink)  # type: ignore[assignment]
        try:
            write(files, folder)
        finally:
            os._exit(0)
    return process


@pytest.mark.parametrize("delays", [(0.05, 0.0), (0.0, 0.05), (0.02, 0.03)])
def test_two_writes_to_one_folder_do_not_mix(delays: tuple[float, float], tmp_path: Path) -> None:
    folder = tmp_path / "package"
    processes = [in_a_process(files, folder, delay) for files, delay in zip((A, B), delays, strict=True)]
    assert [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes] == [0, 0]
    assert contents(folder) in (A, B)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("next_files", [A, B], ids="AB")
def test_a_killed_write_is_not_blamed_on_anybody(next_files: dict[str, str], force: bool, tmp_path: Path) -> None:
    """At every step of it, and nothing of it stays after the next."""
    for kill_after in range(20):
        folder = tmp_path / str(kill_after)
        write(A, folder)
        process = in_a_process(B, folder, kill_after=kill_after)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        compare(next_files, folder)
        write(next_files, folder, force=force)
        assert contents(folder) == next_files
        if ended == 0:
            break
    assert kill_after > 4


def test_an_edit_after_a_killed_write_is_still_an_edit(tmp_path: Path) -> None:
    write(A, tmp_path)
    os.waitpid(in_a_process(B, tmp_path, kill_after=2), 0)
    (tmp_path / "z.py").write_text("mine = 1\n")
    with pytest.raises(DscError, match=r"z\.py was edited by hand"):
        write(B, tmp_path)
    assert (tmp_path / "z.py").read_text() == "mine = 1\n"


def test_a_folder_that_stays_busy_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PATIENCE", 0.1)
    with writer._alone(tmp_path), pytest.raises(DscError, match="DSC042"):
        write(A, tmp_path)
    write(A, tmp_path)
    assert contents(tmp_path) == A

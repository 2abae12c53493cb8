"""What is published: the wheel, the source archive, the links of an editable install, and the files in git."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("spec", "compiler", "templates")


def files_in_git() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def sources(room: str) -> set[str]:
    """The files of a room as they stand on disk, less what Python leaves there."""
    files = (path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, made from a copy, so that no test sees build files here."""
    copy, target = tmp_path_factory.mktemp("copy") / "dsc", tmp_path_factory.mktemp("dist")
    ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", "runs", "generated", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(target)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return target


def test_the_wheel_holds_the_three_rooms_under_dsc(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"dsc", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    packaged = {name for name in names if name.startswith("dsc/")}
    assert packaged == {f"dsc/{name}" for room in ROOMS for name in sources(room)}
    for pattern in (r"dsc/spec/models/.*\.yaml", r"dsc/spec/clusters/.*\.yaml", r"dsc/templates/.*\.jinja"):
        assert any(re.fullmatch(pattern, name) for name in packaged), pattern


def test_the_wheel_works_without_the_repository(built: Path, tmp_path: Path) -> None:
    """The command line of an unpacked wheel compiles a model of the zoo."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = "import sys, dsc.compiler.cli as cli; assert 'site' in cli.__file__; sys.exit(cli.main())"
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": str(Path(sys.executable).parent)}
    # -P keeps the working directory off the path; PYTHONPATH comes before an editable install.
    command = [sys.executable, "-P", "-c", program, "compile", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny" / "model.py").exists()


def test_the_source_archive_holds_what_the_wheel_is_built_from(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames()}
    expected = {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} | {n for room in ROOMS for n in sources(room)}
    assert expected <= names
    assert {name.split("/")[0] for name in names - expected} <= {"tests", ".gitignore"}


def test_editable_installs_have_their_links() -> None:
    for room in ROOMS:
        link = ROOT / ".dev" / "dsc" / room
        assert link.is_symlink() and link.readlink().as_posix() == f"../../{room}"
    if files_in_git():
        modes = subprocess.run(["git", "ls-files", "-s", ".dev"], cwd=ROOT, capture_output=True, text=True).stdout
        linked = {line.split("\t")[1] for line in modes.splitlines() if line.startswith("120000")}
        assert linked == {f".dev/dsc/{room}" for room in ROOMS}, "the links must be in git as links"


def test_every_requirement_says_why() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(
        r"^(?:dependencies|\w+) = \[(?: #[^\n]*)?\n(.*?)^\]", text.split("[tool.")[0], re.DOTALL | re.MULTILINE
    )
    requirements = [line for found in lists for line in found.splitlines()]
    assert len(requirements) > 10
    for line in requirements:
        assert re.fullmatch(r' {4}"[^"]+", # \S.*', line), f"pyproject.toml: {line.strip()}"


# What no file may name: where packages are fetched from, and absolute paths of somebody's machine. Split, so that this
# file passes too.
HOSTS = ("py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org")
PATHS = r"(?<![\w./<}-])/(wo" + "rk|ro" + "ot|ho" + "me|Us" + "ers)/"
FORBIDDEN = (*map(re.escape, HOSTS), PATHS)


def test_no_file_says_where_it_was_made() -> None:
    found = []
    for name in files_in_git():
        try:
            lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            found += [f"{name}:{number}: {line.strip()}" for pattern in FORBIDDEN if re.search(pattern, line, re.I)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", [f"https://{HOSTS[0]}/x", "see /" + "root/x", "in '/" + "home/main'"])
def test_such_a_line_is_found(line: str) -> None:
    assert any(re.search(pattern, line, re.I) for pattern in FORBIDDEN)


@pytest.mark.parametrize("file", ["Makefile", ".ci/run", ".ci/make_venv.py", ".ci/demo.py", "README.md"])
def test_what_strangers_start_with_is_ascii(file: str) -> None:
    (ROOT / file).read_text(encoding="ascii")


def test_continuous_integration_is_executable() -> None:
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111

"""dsc compile by a plan.yaml: the same package as a search gives, and never by a plan that does not hold."""

import re
from pathlib import Path
from typing import Any

import pytest

from dsc.compiler.planner.report import package
from dsc.spec.zoo import MODELS

TINY = (MODELS / "tiny.yaml").read_text()
TWO = "\ncluster: {kind: cpu, nodes: 2}\n"
PLACED = TINY + TWO + "placement: {tp: 1, cp: 1}\n"
GIVEN = ("--cluster", "cpu", "--nodes", "2")


def written(spec: str, path: str = "tiny.yaml") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(spec)
    return path


def package_in(folder: str) -> dict[str, str]:
    """Less where the folder was emitted to."""
    files = {
        path.relative_to(folder).as_posix(): path.read_text() for path in Path(folder).rglob("*") if path.is_file()
    }
    return {name: text for name, text in files.items() if not name.endswith(".pyc")}


@pytest.fixture
def no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(*_: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(package, "make_plan", search)
    monkeypatch.setattr(package, "emitted_search", search)


def test_a_plan_gives_what_the_search_gives(run: Any, request: pytest.FixtureRequest) -> None:
    """To the byte, all files; and the plan that it carries is the one that was written."""
    spec = written(PLACED)
    run("compile", spec, "-o", "searched")
    run("plan", spec, "-o", "plan.yaml")
    request.getfixturevalue("no_search")
    run("compile", spec, "-o", "planned")
    assert package_in("planned") == package_in("searched")
    assert package_in("planned")["plan.yaml"] == Path("plan.yaml").read_text()
    with pytest.raises(AssertionError, match="searched"):  # what would have been noticed
        Path("plan.yaml").unlink()
        run("compile", spec, "-o", "again")


def test_without_a_plan_there_is_none_in_the_package(run: Any, no_search: None) -> None:
    run("compile", "tiny", "-o", "alone")
    assert not {"plan.yaml", "run.sh", "run.slurm", "train/plan.py"} & package_in("alone").keys()


def test_a_package_is_its_own_plan(run: Any, request: pytest.FixtureRequest) -> None:
    """That of a model of the zoo stands in the working directory, and brings machines to a spec that names none."""
    run("plan", "tiny", *GIVEN, "-o", "plan.yaml")
    request.getfixturevalue("no_search")
    run("compile", "tiny")
    Path("plan.yaml").unlink()
    assert run("compile", "tiny", "--check").stdout.startswith("up to date")
    assert "WORLD = 2" in Path("tiny/train/plan.py").read_text()


def test_an_edit_of_the_plan_is_followed(run: Any, request: pytest.FixtureRequest) -> None:
    """Its figures are figured anew, nothing of it counts as an edit by hand, and the next time nothing is to do."""
    run("plan", "tiny", *GIVEN, "-o", "plan.yaml")
    request.getfixturevalue("no_search")
    run("compile", "tiny")
    Path("plan.yaml").unlink()
    own = Path("tiny/plan.yaml")
    seconds = re.search(r"step_seconds: (.*)", own.read_text())
    own.write_text(re.sub(r"micro_batch: \d+", "micro_batch: 2", own.read_text()))
    assert "edited by hand" not in run("compile", "tiny").stdout
    assert "MICRO_BATCH = 2 " in Path("tiny/train/plan.py").read_text()
    text = own.read_text()
    assert "# Its placement was given, and not searched for." in text and "\nmicro_batches: 4\n" in text
    assert seconds and seconds[0] not in text
    assert run("compile", "tiny", "--check").stdout.startswith("up to date")


def test_a_named_plan_is_in_the_command_that_headers_name(run: Any) -> None:
    Path("plans").mkdir()
    run("plan", "tiny", *GIVEN, "-o", "plans/two.yaml")
    run("compile", "tiny", "-o", "src/tiny", "--plan", "plans/two.yaml")
    assert "Regenerate: dsc compile tiny --plan ../plans/two.yaml\n" in Path("src/tiny/model.py").read_text()
    assert run("compile", "tiny", "-o", "src/tiny", "--plan", "plans/two.yaml", "--check").stdout.startswith("up to")


def refused(run: Any, *arguments: str, plan: str = "plan.yaml") -> tuple[str, str, str]:
    """Of a compile: code, the plan's line that it points to, and what it says."""
    errors = run("compile", *arguments, code=2).stderr
    found = re.search(rf"^{plan}:(\d+):1: error\[(DSC\d+)\]: (.*)", errors, re.MULTILINE)
    assert found, errors
    assert "help: " in errors
    return found[2], Path(plan).read_text().splitlines()[int(found[1]) - 1], found[3]


def test_what_changes_no_figure_leaves_the_plan_as_it_is(run: Any, request: pytest.FixtureRequest) -> None:
    spec = written(PLACED)
    run("plan", spec, "-o", "plan.yaml")
    request.getfixturevalue("no_search")
    written("# a comment\n" + PLACED + "training: {not_finite: skip}\ninitializer_range: 0.01\n")
    run("compile", spec)
    assert package_in("tiny")["plan.yaml"] == Path("plan.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "instead", "key", "says"),
    [
        ("hidden_size: 256", "hidden_size: 128", "spec_sha256:", "was made for tiny as its spec was before"),
        ("nodes: 2", "nodes: 4", "hardware:", "is for 2 x cpu, and the spec names 4 x cpu"),
        ("tp: 1, cp: 1", "tp: 1, cp: 1, ep: 2", "placement:", "has ep 1, and the spec pins 2"),
    ],
)
def test_a_plan_of_an_earlier_spec_is_refused(run: Any, given: str, instead: str, key: str, says: str) -> None:
    spec = written(PLACED.replace("tp: 1, cp: 1", "tp: 1, cp: 1, ep: 1"))
    run("plan", spec, "-o", "plan.yaml")
    assert given in PLACED
    written(PLACED.replace(given, instead))
    code, line, said = refused(run, spec)
    assert (code, said) == ("DSC072", f"plan.yaml {says}") and line.startswith(key)
    assert "help: plan again: dsc plan SPEC -o plan.yaml" in run("compile", spec, code=2).stderr


@pytest.mark.parametrize(
    ("given", "instead", "key", "says"),
    [
        (r"micro_batch: \d+", "micro_batch: 3", "placement:", "is impossible: dp x micro_batch = 2 x 3 = 6"),
        (r"micro_batch: \d+", "micro_batch: x", "placement:", "has a placement that cannot be read: micro_batch: "),
        (r", micro_batch: \d+", "", "placement:", "has a placement without micro_batch"),
        (r"version: 1", "version: 2", "version:", "is of version 2 of the format; this dsc reads version 1"),
        (r"hardware_sha256: ..", "hardware_sha256: 00", "hardware_sha256:", "was made with other figures of cpu"),
    ],
)
def test_a_plan_that_was_broken_by_hand_is_refused(run: Any, given: str, instead: str, key: str, says: str) -> None:
    run("plan", "tiny", *GIVEN, "-o", "plan.yaml")
    text, count = re.subn(given, instead, Path("plan.yaml").read_text(), count=1)
    assert count
    Path("plan.yaml").write_text(text)
    code, line, said = refused(run, "tiny")
    assert code == "DSC072" and line.startswith(key) and said.startswith(f"plan.yaml {says}")


def test_other_machines_than_the_specs_only_where_the_plan_is_named(run: Any) -> None:
    spec = written(TINY + "\ncluster: {kind: cpu, nodes: 4}\n")
    run("plan", spec, "--nodes", "2", "-o", "plan.yaml")
    assert refused(run, spec)[2] == "plan.yaml is for 2 x cpu, and the spec names 4 x cpu"
    run("compile", spec, "--plan", "plan.yaml")
    assert "WORLD = 2 " in Path("tiny/train/plan.py").read_text()


@pytest.mark.parametrize("more", [("--mode", "decode"), ()])
def test_a_plan_of_something_else_is_passed_over_by_name(run: Any, more: tuple[str, ...]) -> None:
    name = "tiny" if more else "tiny-window"
    run("plan", name, *GIVEN, *more, "-o", "plan.yaml", code=None)
    says = "is for decode, not for training" if more else "is of tiny-window, and this spec is tiny"
    assert f"note: not read: plan.yaml {says}" in run("compile", "tiny").stderr.replace("'", "")
    assert not Path("tiny/train/plan.py").exists()
    code, _, said = refused(run, "tiny", "--plan", "plan.yaml")
    assert code == "DSC071" and said.replace("'", "") == f"plan.yaml {says}"


def test_what_is_no_plan_is_refused(run: Any) -> None:
    written("a: 1\n", "plan.yaml")
    assert refused(run, "tiny", "--plan", "plan.yaml")[::2] == ("DSC071", "plan.yaml is no plan of dsc")
    assert "--plan is for one SPEC" in run("compile", "--plan", "plan.yaml", code=2).stderr


def test_a_packages_own_plan_follows_its_spec(run: Any) -> None:
    """A spec that places its model is planned again, and says so; one that was planned by hand is refused."""
    spec = written(PLACED)
    run("compile", spec)
    written(PLACED.replace("hidden_size: 256", "hidden_size: 128"))
    note = "note: planned again: tiny/plan.yaml was made for tiny as its spec was before"
    assert note in run("compile", spec).stderr
    assert note not in run("compile", spec).stderr
    written(TINY.replace("hidden_size: 256", "hidden_size: 64") + TWO)
    assert refused(run, spec, plan="tiny/plan.yaml")[0] == "DSC072"

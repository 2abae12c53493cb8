"""dsc plan: what a user sees of the planner, and dsc diff of two plans."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dsc.compiler.cli.plan_tables import shown_roles
from dsc.compiler.planner.memory.lines import MemoryLine, Role
from dsc.spec.zoo import CLUSTERS, MODELS, names, path_of

CPU = ("--cluster", "cpu", "--nodes", "4")
DECODE = ("llama-3.1-8b", "--mode", "decode", "--cluster", "h100")
SMALL = ("weights", "gradients", "optimizer", "activations", "logits", "communication", "workspace", "reserve")


def spec_with(name: str, more: str) -> Path:
    """A model of the zoo with further keys, as a file in this folder."""
    path = Path(f"{name}.yaml")
    path.write_text((MODELS / f"{name}.yaml").read_text() + more)
    return path


def errors(result: Any) -> list[str]:
    return [line for line in result.stderr.splitlines() if line]


# Training.


def test_training_in_the_terminal(run: Any) -> None:
    shown = run("plan", "tiny", *CPU).stdout
    assert shown.startswith("fits: tiny, training on 4 nodes of cpu, 4 processes\n  pp ")
    for words in (
        "GiB of one process",
        "of a step, busiest rank",
        "one choice away",
        "frees most memory: ",
        "ways to share the model are legal",
    ):
        assert words in shown
    assert re.search(r"^step \d+\.\d\d s \(\+-100%\), bubble ", shown, re.MULTILINE)


def test_of_many_kinds_of_ranks_the_terminal_shows_three() -> None:
    roles = [
        Role((rank,), (rank,), (), (MemoryLine("weights", size, "derived", ""),))
        for rank, size in enumerate((*range(8), 3))
    ]
    assert [role.ranks for role in shown_roles(roles)] == [(0,), (7,), (8,)]
    assert shown_roles(roles[:8]) == roles[:8]


def test_one_value_is_explained(run: Any, facts: Any) -> None:
    shown = run("plan", "tiny", *CPU, "--explain", "micro_batch").stdout
    value = facts("plan", "tiny", *CPU)["micro_batch"]
    assert shown.startswith(f"micro_batch {value}, of tiny on 4 nodes of cpu, 4 processes: ")
    assert f" micro_batch {value} -> {value // 2} " in shown and " pp " not in shown and "-0.0" not in shown
    assert facts("plan", "tiny", *CPU, "--explain", "micro_batch")["value"] == value


def test_json_has_the_keys_of_the_contract(facts: Any) -> None:
    plan = facts("plan", "tiny", *CPU)
    assert plan["fits"] is True and plan["world_size"] == 4
    assert list(plan["mesh"]) == sorted(("pp", "vpp", "dp", "cp", "tp", "ep", "etp"))
    assert {"schedule", "micro_batch", "recompute", "rejected"} <= plan.keys()
    assert {"step_seconds", "bubble_fraction", "mfu", "gpu_hours_per_trillion_tokens"} <= plan["time"].keys()
    for role in plan["memory"]:
        assert sum(role[name] for name in SMALL) == role["total"] == sum(line["bytes"] for line in role["lines"])
        assert role["total"] <= role["capacity"] == 4_000_000_000
        assert all(line["tensors"] or line["provenance"] == "assumed" for line in role["lines"])
    assert {line["provenance"] for role in plan["memory"] for line in role["lines"]} <= {
        "derived",
        "measured",
        "assumed",
    }
    assert sum(line["seconds"] for line in plan["time"]["lines"]) == pytest.approx(plan["time"]["step_seconds"])


def test_the_file_is_the_same_every_time_and_pins_what_it_says(run: Any, facts: Any) -> None:
    for name in ("a.yaml", "b.yaml"):
        assert run("plan", "tiny", *CPU, "-o", name).stdout == f"wrote {name}\n"
    text = Path("a.yaml").read_text()
    assert text == Path("b.yaml").read_text()
    assert "Regenerate: dsc plan tiny --cluster cpu --nodes 4 -o FILE\n" in text
    pinned = next(line for line in text.splitlines() if line.startswith("placement: "))
    spec = spec_with("tiny", pinned + "\ncluster: {kind: cpu, nodes: 4}\n")
    again, free = facts("plan", spec), facts("plan", "tiny", *CPU)
    assert again["searched"]["legal"] == 1 < free["searched"]["legal"]
    for key in ("mesh", "schedule", "micro_batch", "recompute", "zero", "memory"):
        assert again[key] == free[key], key


def test_json_stays_json_beside_files(run: Any) -> None:
    result = run("plan", "tiny", *CPU, "--json", "-o", "plan.yaml", "--report", "plan.html", "--trace", "plan.json")
    assert json.loads(result.stdout)["name"] == "tiny"
    assert errors(result) == ["wrote plan.yaml", "wrote plan.html", "wrote plan.json"]
    assert Path("plan.html").read_text().startswith("<!DOCTYPE html>")
    assert json.loads(Path("plan.json").read_text())["traceEvents"]
    assert YAML(typ="safe", pure=True).load(Path("plan.yaml"))["mode"] == "train"


# Serving.


def test_decode_in_the_terminal(run: Any) -> None:
    shown = run("plan", *DECODE).stdout
    assert shown.startswith("fits: llama-3.1-8b, decode on 1 node of h100, 8 GPUs\n  dp ")
    assert "weights in bf16; cache of " in shown and "sequences of 4,096 tokens" in shown
    for line in ("vocabulary weights", "arena", "block tables", "cache", "total", "capacity"):
        assert re.search(rf"^ {line} +\d+\.\d\d\b", shown, re.MULTILINE), line
    assert re.search(r"^[\d,]+ sequences at once in a group, [\d,]+ in all; [\d,]+ pages on a GPU$", shown, re.M)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_serving_as_json(facts: Any, mode: str) -> None:
    plan = facts("plan", "llama-3.1-8b", "--mode", mode, "--cluster", "h100", "--context", "8192")
    assert (plan["mode"], plan["fits"], plan["context_length"], plan["world_size"]) == (mode, True, 8192, 8)
    assert plan["mesh"]["tp"] * plan["mesh"]["dp"] == 8 and plan["experts"] is None
    (role,) = plan["memory"]
    parts = ("weights", "cache", "activations", "communication", "workspace")
    assert sum(role[name] for name in parts) == role["total"] == sum(line["bytes"] for line in role["lines"])
    assert role["total"] <= role["capacity"]
    cache = plan["cache"]
    assert role["cache"] == cache["pages"] * cache["page_bytes"]
    assert cache["pages_per_sequence"] == 8192 // cache["page_tokens"]
    assert plan["sequences"]["of_a_group"] * cache["pages_per_sequence"] <= cache["pages"]
    assert plan["sequences"]["of_all"] == plan["sequences"]["of_a_group"] * plan["mesh"]["dp"]
    assert role["activations"] == plan["arena"]["bytes"] >= plan["arena"]["least_bytes"]
    assert not any("graphs" in line["name"] for line in role["lines"]), "the engine launches every kernel"


def test_redundant_experts(facts: Any) -> None:
    """DeepSeek-V3 report, section 3.4.1: 32 redundant experts, so that the GPUs which share them hold 288."""
    plan = facts("plan", "deepseek-v3", "--mode", "prefill", "--cluster", "h800", "--nodes", "4", "--redundant", "32")
    assert plan["experts"]["redundant"] == 32 and plan["experts"]["shared_on_every_gpu"]
    assert plan["experts"]["slots_per_gpu"] * plan["mesh"]["ep"] == 256 + 32


def skewed(layers: int, experts: int) -> str:
    """Loads of which the first experts carry most."""
    return json.dumps([[1000 // (1 + expert + layer) for expert in range(experts)] for layer in range(layers)])


def test_experts_are_placed_by_load(run: Any, facts: Any) -> None:
    """The balancer itself is held to EPLB's example in tests/planner/test_experts.py."""
    Path("loads.json").write_text(skewed(58, 256))
    Path("v3.yaml").write_text(path_of("deepseek-v3", MODELS).read_text() + "placement: {ep: 320}\n")
    arguments = ("v3.yaml", "--mode", "decode", "--cluster", "h800", "--nodes", "40", "--loads", "loads.json")
    plan = facts("plan", *arguments)
    placed = plan["expert_placement"]
    assert [one["layer"] for one in placed] == list(range(3, 61))
    for one in placed:
        assert [len(held) for held in one["gpus"]] == [plan["experts"]["slots_per_gpu"]] * 320
        assert {expert for held in one["gpus"] for expert in held} == set(range(256))
    assert sum(held == [0] for held in placed[0]["gpus"]) > 1 == sum(held == [255] for held in placed[0]["gpus"])
    run("plan", *arguments, "-o", "plan.yaml", "--report", "plan.html")
    text = Path("plan.yaml").read_text()
    assert YAML(typ="safe", pure=True).load(text)["expert_placement"][0]["gpus"] == placed[0]["gpus"]
    assert "--loads LOADS" in text and "placed by load" in Path("plan.html").read_text()
    assert "experts by load: the busiest GPU carries " in run("plan", *arguments).stdout


def test_loads_lower_the_imbalance(facts: Any) -> None:
    Path("loads.json").write_text(skewed(4, 16))
    Path("shared.yaml").write_text(path_of("tiny", MODELS).read_text() + "placement: {ep: 8}\n")
    arguments = ("shared.yaml", "--mode", "decode", "--cluster", "h100", "--redundant", "8", "--loads", "loads.json")
    for one in facts("plan", *arguments)["expert_placement"]:
        assert 1 <= one["imbalance"] < one["imbalance_of_blocks"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[", "no JSON: "),
        ("{}", "a dict, not a list of 4, one for each layer of experts"),
        ("[[1]]", "a list of 1, not a list of 4, one for each layer of experts"),
        ("[[1], [1], [1], [1]]", "layer 1: not a list of 16 loads, one for each expert"),
        (json.dumps([[1] * 15 + [-1]] * 4), "layer 1, expert 15: -1 is no load"),
        (json.dumps([[0] * 16] * 4), "layer 1: no expert has a load"),
    ],
)
def test_loads_that_are_none_say_why(run: Any, text: str, says: str) -> None:
    Path("loads.json").write_text(text)
    result = run("plan", "tiny", "--mode", "decode", *CPU, "--loads", "loads.json", code=2)
    assert f"loads.json: {says}" in " ".join(result.stderr.split())


def test_pins_of_a_deployment_hold(facts: Any) -> None:
    spec = spec_with("llama-3.1-8b", "placement: {tp: 4}\n")
    plan = facts("plan", spec, "--mode", "decode", "--cluster", "h100")
    assert (plan["mesh"]["tp"], plan["mesh"]["dp"]) == (4, 2)


def test_files_of_a_deployment(run: Any) -> None:
    run("plan", *DECODE, "-o", "plan.yaml", "--report", "plan.html")
    plan = YAML(typ="safe", pure=True).load(Path("plan.yaml"))
    assert plan["mode"] == "decode" and plan["memory"][0]["lines"]
    assert "--mode decode --context 4096 --cluster h100 --nodes 1 -o FILE" in Path("plan.yaml").read_text()
    assert "The arena of a step" in Path("plan.html").read_text()


# What cannot be.


def test_what_does_not_fit_names_the_smallest_cluster_that_would(run: Any, facts: Any) -> None:
    result = run("plan", "llama-3.1-70b", "--cluster", "h100", "-o", "plan.yaml", code=1)
    (said,) = errors(result)
    found = re.fullmatch(
        r"does not fit: a GPU needs at least [\d.]+ GiB, [\d.]+ GiB more than it has; "
        r"(\d+) nodes of h100 would do, (\d+) GPUs",
        said,
    )
    assert found, said
    nodes = int(found[1])
    assert int(found[2]) == 8 * nodes
    assert "fits: false" in Path("plan.yaml").read_text()
    run("plan", "llama-3.1-70b", "--cluster", "h100", "--nodes", nodes - 1, "--json", code=1)
    assert facts("plan", "llama-3.1-70b", "--cluster", "h100", "--nodes", str(nodes))["fits"] is True


def test_what_does_not_fit_to_serve(run: Any) -> None:
    arguments = ("plan", "deepseek-v3", "--mode", "decode", "--cluster", "h800")
    result = run(*arguments, code=1)
    assert errors(result) == [
        "does not fit: a GPU needs at least 84.6 GiB for one sequence of 4,096 tokens, 5.5 GiB more than it has; "
        "2 nodes of h800 would do, 16 GPUs"
    ]
    assert re.search(r"total +84.57", result.stdout)  # experts that ranks share serve in FP8
    run(*arguments, "--nodes", "2", "--json")


def test_no_number_of_nodes_helps_a_model_that_no_node_holds(run: Any) -> None:
    """Tensor parallelism ends where NVLink does, and GPUs that serve have no pipeline."""
    result = run("plan", "llama-3.1-405b", "--mode", "decode", "--cluster", "h100", code=1)
    assert errors(result)[-1].endswith("; no number of h100 nodes would do")


@pytest.mark.parametrize(
    ("pins", "mode", "said"),
    [
        ("{pp: 3, dp: 1}", "train", "pp x dp = 3 x 1 = 3 does not divide 4 ranks"),
        ("{pp: 2, dp: 2, cp: 1, tp: 2}", "train", "pp x dp x cp x tp = 2 x 2 x 1 x 2 = 8, but there are 4 ranks"),
        ("{tp: 4, dp: 4}", "decode", "tp x dp = 4 x 4 = 16, but there are 4 ranks"),
        ("{tp: 3}", "decode", "tp = 3 does not divide 4 ranks: 4 = 1 x 3 + 1"),
        ("{pp: 2}", "decode", "pp = 2, but GPUs that serve are shared by tp, dp and ep only"),
    ],
)
def test_contradictory_pins_say_the_arithmetic(run: Any, pins: str, mode: str, said: str) -> None:
    spec = spec_with("tiny", f"placement: {pins}\ncluster: {{kind: cpu, nodes: 4}}\n")
    result = run("plan", spec, "--mode", mode, code=2)
    assert re.fullmatch(rf"{spec}:\d+:1: error\[DSC070\]: {re.escape(said)}", errors(result)[0])
    assert not result.stdout


def test_a_spec_without_a_cluster_is_planned_on_one_device_of_no_name(run: Any, facts: Any) -> None:
    plan, known = facts("plan", "tiny"), facts("plan", "tiny", *CPU)
    assert (plan["fits"], plan["cluster"], plan["time"], plan["world_size"]) == (None, None, None, 1)
    assert set(plan) <= set(known) and set(plan["mesh"].values()) == {1}
    (role,) = plan["memory"]
    assert sum(role[name] for name in SMALL) == role["total"] == sum(line["bytes"] for line in role["lines"])
    assert role["capacity"] is None and role["reserve"] == 0 < role["activations"]
    parameters = facts("stats", "tiny")["parameters"]
    assert role["weights"] == 4 * (parameters["total"] + parameters["mtp"]) == role["gradients"]
    shown = run("plan", "tiny").stdout
    assert shown.startswith("tiny, training on one device that holds all of it, a sequence of ")
    assert shown.endswith("or with --cluster h800 --nodes 256\n") and re.search(r"^ total +\d+\.\d\d", shown, re.M)


@pytest.mark.parametrize("more", [("--mode", "decode"), ("--nodes", "2")])
def test_a_spec_without_a_cluster_is_told_how_to_name_one(run: Any, more: tuple[str, str]) -> None:
    result = run("plan", "tiny", *more, code=2)
    assert errors(result)[:2] == [
        "error[DSC065]: tiny names no cluster to plan for",
        "help: name one in the spec, `cluster: {kind: h800, nodes: 256}`, or with --cluster h800 --nodes 256",
    ]


def test_files_are_for_plans_with_a_cluster(run: Any) -> None:
    assert (
        "--output, --report: not for a plan without a cluster"
        in run("plan", "tiny", "-o", "a.yaml", "--report", "a.html", code=2).stderr
    )
    assert not Path("a.yaml").exists()


def test_an_unknown_cluster_is_told_the_known_ones(run: Any) -> None:
    result = run("plan", "tiny", "--cluster", "h9000", code=2)
    assert errors(result) == [
        "error[DSC065]: no cluster is named 'h9000'",
        f"help: one of {', '.join(names(CLUSTERS))}",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--context", "4096"), "--context is for --mode prefill, --mode decode and --mode serve"),
        (("--redundant", "32"), "--redundant is for --mode prefill, --mode decode and --mode serve"),
        (("--mode", "decode", "--target-ttft", "9"), "--target-ttft is for --mode prefill and --mode serve"),
        (("--mode", "prefill", "--acceptance", "0.8"), "--acceptance is for --mode decode and --mode serve"),
        (("--mode", "prefill", "--answer", "8"), "--answer is for --mode serve"),
        (
            (
                "--mode",
                "serve",
            ),
            "--mode serve needs --answer",
        ),
        (("--mode", "serve", "--answer", "8", "--report", "x"), "--report is of one pool"),
        (("--mode", "serve", "--answer", "8", "--nodes", "1"), "there is one: see --mode decode"),
        (("--mode", "decode", "--trace", "x"), "--trace shows the pipeline of a training step"),
        (("--explain", "microbatch"), "--explain microbatch: did you mean micro_batch?"),
        (("--mode", "decode", "--explain", "tp"), "--explain is for --mode train"),
        (("--mode", "dream"), "'dream' is not one of"),
        (("--nodes", "0"), "0 is not in the range"),
    ],
)
def test_usage(run: Any, arguments: tuple[str, ...], said: str) -> None:
    assert said in run("plan", "tiny", *CPU, *arguments, code=2).stderr


def test_an_unwritable_file(run: Any) -> None:
    assert run("plan", "tiny", *CPU, "-o", "/proc/no/such", code=2).stderr.startswith("error: /proc/no")


# Two plans.


@pytest.fixture
def plans(run: Any) -> tuple[str, str]:
    run("plan", "tiny", *CPU, "-o", "one.yaml")
    run("plan", "tiny", "--cluster", "cpu", "--nodes", "8", "-o", "two.yaml")
    return "one.yaml", "two.yaml"


def test_a_plan_does_not_differ_from_itself(run: Any, facts: Any, plans: tuple[str, str]) -> None:
    one = Path(plans[0]).read_text()
    Path("same.yaml").write_text("# another comment\n" + one)
    assert run("diff", plans[0], "same.yaml").stdout == "same: one.yaml and same.yaml are one plan\n"
    assert facts("diff", plans[0], "same.yaml") == {"plan": [], "memory": [], "time": [], "rejected": []}


def test_two_plans_differ_in_mesh_ledger_and_times(run: Any, facts: Any, plans: tuple[str, str]) -> None:
    found = facts("diff", *plans, code=1)
    decisions = {one["name"]: (one["first"], one["second"]) for one in found["plan"]}
    assert decisions["world_size"] == (4, 8)
    assert "step_seconds" in {one["name"] for one in found["time"]}
    assert any(one["name"].endswith(": total") for one in found["memory"])
    shown = run("diff", *plans, code=1).stdout
    assert re.search(r"^ world_size +4 +8 +\+100\.0% *$", shown, re.MULTILINE)
    assert "GiB" in shown and "entries differ" in shown


def test_one_edited_figure_is_found(facts: Any, plans: tuple[str, str]) -> None:
    """Every leaf of the file: the mesh, a line of the ledger, a time, a reason, a source."""
    text = Path(plans[0]).read_text()
    edits = (
        ("plan", "micro_batch: ", "micro_batch: 1"),
        ("memory", "\n    optimizer: ", "\n    optimizer: 1"),
        ("memory", "\n    weights: ", "\n    weights: 1"),
        ("memory", "\n      weights: ", "\n      weights: 1"),  # a line has the name of a sum
        ("time", "step_seconds: ", "step_seconds: 1"),
        ("rejected", "binds: time, ", "binds: memory, "),
    )
    for section, old, new in edits:
        assert old in text
        Path("edited.yaml").write_text(text.replace(old, new, 1))
        found = facts("diff", plans[0], "edited.yaml", code=1)
        assert [name for name, changes in found.items() if changes] == [section]
        assert len(found[section]) == 1
    Path("edited.yaml").write_text(text.replace("SimuMax's 43", "SimuMax's 44", 1))
    (source,) = facts("diff", plans[0], "edited.yaml", code=1)["memory"]
    assert source["name"].endswith("allocator reserve: source")


def test_a_plan_and_a_spec_are_not_compared(run: Any, plans: tuple[str, str]) -> None:
    said = "one.yaml is a plan and tiny is none: compare two plans, or two specs"
    assert said in run("diff", plans[0], "tiny", code=2).stderr
    assert said in run("diff", "tiny", plans[0], code=2).stderr


def test_a_broken_plan_is_bad_input(run: Any, plans: tuple[str, str]) -> None:
    Path("broken.yaml").write_text(Path(plans[0]).read_text() + "memory: [\n")
    assert "broken.yaml:" in run("diff", plans[0], "broken.yaml", code=2).stderr
    assert "error[DSC003]" in run("diff", plans[0], "broken.yaml", code=2).stderr
    Path("short.yaml").write_text(f"hardware_sha256: {'0' * 64}\n")
    assert "error[DSC006]" in run("diff", "short.yaml", plans[0], code=2).stderr

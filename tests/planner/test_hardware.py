"""Machines: unknown ones are refused, every shipped one is calibrated, and every constant says where it is from."""

from pathlib import Path

import pytest

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import planned, run
from dsc.compiler.passes.fuse.elementwise import fuse_elementwise
from dsc.compiler.passes.fuse.norms import fuse_norms
from dsc.compiler.planner.layout.layout import TRIVIAL
from dsc.compiler.planner.machine.calibration import CALIBRATIONS, HOPPER, Calibration, Figure
from dsc.compiler.planner.machine.collectives import Group, all_gather
from dsc.compiler.planner.machine.hardware import Hardware, UnknownHardware, calibration_of, hardware
from dsc.compiler.planner.memory.lines import COLLECTIVES, CUDA, EXPERT_BUFFERS
from dsc.compiler.planner.parts.parts import parts_of
from dsc.compiler.planner.report.plan import make_plan
from dsc.compiler.planner.report.write import plan_yaml
from dsc.compiler.planner.search.emitted import not_emitted
from dsc.compiler.planner.search.problem import Problem
from dsc.compiler.planner.time.kernels import CLASSES, Share, seconds
from dsc.compiler.planner.time.ops import OpCost, op_costs
from dsc.spec.cluster import Machines
from dsc.spec.errors import DscError
from dsc.spec.loader import load, loads
from dsc.spec.model import ModelSpec
from dsc.spec.zoo import CLUSTERS, MODELS, names, path_of
from planner.machines import V3_RECOMPUTE, costs, emitted, machine, others, theirs


def constants(calibration: Calibration) -> list[Figure]:
    values = vars(calibration).values()
    return [one for value in values for one in (value.values() if isinstance(value, dict) else [value])]


@pytest.mark.parametrize("kind", names(CLUSTERS))
def test_every_cluster_that_ships_is_known(kind: str) -> None:
    found = hardware(Machines(kind=kind, nodes=2))
    assert found.gpus == 2 * found.cluster.gpus_per_node
    cluster = found.cluster
    assert cluster.scale_up_achieved <= cluster.scale_up_bandwidth
    assert cluster.nic_achieved <= cluster.nic_bandwidth
    assert set(found.calibration.forward) == set(CLASSES)


def test_a_machine_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(UnknownHardware, match="no cluster is named 'h900'") as error:
        hardware(Machines(kind="h900", nodes=1))
    assert isinstance(error.value, DscError)


def test_a_family_without_calibration_is_an_error_and_no_default() -> None:
    other = machine("h100", 1).cluster.model_copy(update={"architecture": "volta"})
    with pytest.raises(UnknownHardware, match="nothing is known of how fast"):
        calibration_of(other)


def test_fp8_of_other_engines_on_a_machine_without_is_an_error() -> None:
    with pytest.raises(UnknownHardware, match="no FP8 units"):
        theirs("deepseek-v3", machine("a100", 1))


def test_on_a_machine_without_fp8_the_package_multiplies_in_bfloat16_and_the_plan_says_so() -> None:
    problem = emitted("deepseek-v3", "a100")
    assert {op.kernel_class for op in problem.cost.ops["MoeLayer.forward"]} & {"fp8_gemm", "fp8_grouped"} == set()
    (said,) = not_emitted(problem, TRIVIAL)
    assert said == "precision.linear.products: attention, experts, feed_forward run in bfloat16, and so it is planned"


@pytest.mark.parametrize("family", sorted(CALIBRATIONS))
def test_every_constant_has_a_source(family: str) -> None:
    for constant in constants(CALIBRATIONS[family]):
        assert constant.source
        assert constant.provenance in ("measured", "assumed")
        assert constant.value >= 0


def test_only_hopper_is_measured() -> None:
    for family, calibration in CALIBRATIONS.items():
        measured = [one for one in constants(calibration) if one.provenance == "measured"]
        assert bool(measured) == (family == "hopper")
    held = CALIBRATIONS["blackwell"].forward["fp8_gemm"]
    assert held.source.startswith("held utilisation") and held.value == HOPPER.forward["fp8_gemm"].value


def traced() -> dict[str, tuple[OpCost, ...]]:
    """The ops of the traced program: it concatenates queries and keys before it attends, which our kernel does not."""
    spec = load("deepseek-v3")
    graph = run(build_graph(spec), (fuse_norms, fuse_elementwise))
    return op_costs(parts_of(graph), others(spec))


def pair(hardware: Hardware) -> dict[str, float]:
    """Milliseconds by class of four V3 MoE layers, forward and backward, beside communication on 20 of 132 SMs."""
    one = seconds(traced()["MoeLayer.forward"], hardware, 1, 4096, Share(experts=64))
    left = 1 - hardware.calibration.communication_share.value
    passes = (*one[:3], one.recompute(V3_RECOMPUTE))
    total = {name: 4e3 * sum(vector[index] for vector in passes) for index, name in enumerate(CLASSES)}
    return {name: time if name in ("memory", "cast") else time / left for name, time in total.items()}


def test_the_graph_with_the_calibration_gives_back_the_trace() -> None:
    """DeepSeek's profile-data train.json: what the constants were read off, by the graph's own FLOPs and bytes."""
    found = pair(machine("h800", 256))
    assert found["fp8_gemm"] + found["fp8_grouped"] == pytest.approx(74.5, rel=0.01)
    assert found["attention"] == pytest.approx(4.95 + 17.02, rel=0.01)
    assert found["cast"] == pytest.approx(16.7, rel=0.01)
    assert found["memory"] == pytest.approx(16.9, rel=0.02)
    assert sum(found.values()) == pytest.approx(129.0, rel=0.03)  # wall


def test_fp8_products_run_at_the_published_rate() -> None:
    """794 TFLOPS over all FP8 GEMM kernels of the trace, recomputed projections included."""
    ops = costs("deepseek-v3", "h800", 256).ops["MoeLayer.forward"]
    flops = 0.0
    for op in ops:
        if op.kernel_class in ("fp8_gemm", "fp8_grouped"):
            again = any(name in V3_RECOMPUTE for name in op.recompute)
            flops += 4 * ((2 if again else 1) * op.flops.at(1, 4096) + op.backward_flops.at(1, 4096))
    found = pair(machine("h800", 256))
    assert flops / (found["fp8_gemm"] + found["fp8_grouped"]) / 1e9 == pytest.approx(794, rel=0.01)


def in_fp8(**products: str) -> set[str]:
    """The names of a layer's ops whose products are timed in FP8, by the spec's table."""
    data = load("deepseek-v3").model_dump() | {"cluster": {"kind": "h800"}, "placement": None}
    data["precision"]["linear"]["products"] |= products
    graph, _ = planned(ModelSpec.model_validate(data))
    return {op.name for op in op_costs(parts_of(graph))["MoeLayer.forward"] if op.kernel_class.startswith("fp8")}


@pytest.mark.parametrize("product", ["attention", "feed_forward", "experts"])
def test_products_that_the_spec_keeps_wide_are_not_timed_in_fp8(product: str) -> None:
    """By the op and not by the module that it is in, as it is emitted."""
    every, fewer = in_fp8(), in_fp8() - in_fp8(**{product: "bf16"})
    assert in_fp8(**{product: "bf16"}) < every
    assert (
        fewer
        == {
            "attention": {
                f"layers.3.self_attn.{name}.weight"
                for name in ("q_a_proj", "q_b_proj", "kv_b_proj", "o_proj")  # of layers that read one x, the first
            },
            "feed_forward": {f"layers.3.mlp.shared_experts.{name}_proj.weight" for name in ("gate", "down")},
            "experts": {"layers.3.mlp.gate_up_proj"},  # one kernel of both products
        }[product]
    )


def test_the_roofline_takes_the_slowest_of_three() -> None:
    h800 = machine("h800", 1)
    forward, peak = HOPPER.forward, 989e12 * HOPPER.forward["gemm"].value
    bandwidth = 3.35e12 * HOPPER.forward["memory"].value
    assert h800.kernel_seconds(forward, "gemm", 1e15, 1.0) == pytest.approx(1e15 / peak)
    assert h800.kernel_seconds(forward, "gemm", 1.0, 1e12) == pytest.approx(1e12 / bandwidth)
    assert h800.kernel_seconds(forward, "gemm", 1.0, 1.0) == HOPPER.kernel_floor.value


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (3, 1), (8, 1), (12, 2)])
def test_gpus_need_not_fill_a_node(gpus: int, nodes: int) -> None:
    found = hardware(Machines(kind="H100", gpus=gpus))  # names have no case
    assert (found.gpus, found.nodes) == (gpus, nodes)
    assert all_gather(1e9, Group(gpus), found) <= all_gather(1e9, Group(16), found)


def test_a_machine_of_ones_own_is_a_file_beside_the_spec(tmp_path: Path) -> None:
    described = (CLUSTERS / "h100.yaml").read_text().replace("name: h100", "name: ours")
    (tmp_path / "ours.yaml").write_text(described.replace("hbm_bytes: 85899345920", "hbm_bytes: 1000"))
    for section in ("./ours.yaml", "{kind: ./ours.yaml, gpus: 3}"):
        (tmp_path / "spec.yaml").write_text(f"{path_of('tiny', MODELS).read_text()}\ncluster: {section}\n")
        spec = load(tmp_path / "spec.yaml")
        assert spec.cluster is not None and spec.cluster.kind == "ours"
        found = hardware(spec.cluster)
        assert (found.cluster.hbm_bytes, found.gpus) == (1000, 3 if "gpus" in section else 8)
        assert str(tmp_path) not in spec.model_dump_json()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("./nowhere.yaml", "cannot be read: no such file"),
        ("{kind: h100, nodes: 2, gpus: 3}", "both nodes, 2, and gpus, 3"),
        ("h900", "no cluster is named 'h900'"),
    ],
)
def test_what_is_wrong_with_a_cluster_is_said_where_it_stands(tmp_path: Path, section: str, said: str) -> None:
    text = f"{path_of('tiny', MODELS).read_text()}\ncluster: {section}\n"
    with pytest.raises(DscError, match=said) as error:
        loads(text, str(tmp_path / "spec.yaml"))
    (finding,) = error.value.findings
    assert finding.code == "DSC065" and finding.position is not None
    assert finding.position.line == text.count("\n")


def test_a_cpu_has_no_context_of_cuda_and_no_gpus() -> None:
    spec = load("tiny")
    cpu = hardware(Machines(kind="cpu", nodes=4))
    plan = make_plan(Problem(spec, *planned(spec), cpu))
    names = {line.name for role in plan.roles for line in role.lines}
    assert not names & {CUDA, COLLECTIVES, EXPERT_BUFFERS}
    assert "GPU" not in plan_yaml(plan).replace("without a GPU", "")

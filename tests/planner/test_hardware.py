"""Machines: unknown ones are refused, every shipped one is calibrated, and every constant says where it is from."""

import pytest

from dsc.compiler.blocks.model import build_graph
from dsc.compiler.driver import run, timed
from dsc.compiler.passes.fuse.elementwise import fuse_elementwise
from dsc.compiler.passes.fuse.norms import fuse_norms
from dsc.compiler.planner.machine.calibration import CALIBRATIONS, HOPPER, Calibration, Figure
from dsc.compiler.planner.machine.hardware import Hardware, UnknownHardware, calibration_of, hardware
from dsc.compiler.planner.parts.parts import parts_of
from dsc.compiler.planner.time.kernels import CLASSES, Share, seconds
from dsc.compiler.planner.time.ops import OpCost, op_costs
from dsc.compiler.planner.time.step import CostModel
from dsc.spec.cluster import Machines
from dsc.spec.errors import DscError
from dsc.spec.loader import load
from dsc.spec.zoo import CLUSTERS, names
from planner.machines import V3_RECOMPUTE, costs, machine, model


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


def test_fp8_on_a_machine_without_is_an_error() -> None:
    with pytest.raises(UnknownHardware, match="no FP8 units"):
        CostModel(*model("deepseek-v3"), machine("a100", 1))


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
    return op_costs(parts_of(graph), spec.precision.fp8_products())


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


@pytest.mark.parametrize("product", ["attention", "feed_forward", "experts"])
def test_products_that_the_spec_keeps_wide_are_not_timed_in_fp8(product: str) -> None:
    """By the op and not by the module that it is in."""
    spec = load("deepseek-v3")
    parts = parts_of(timed(spec))
    every = spec.precision.fp8_products()
    all_of_them, others = (op_costs(parts, some)["MoeLayer.forward"] for some in (every, every - {product}))
    changed = {a.name for a, b in zip(all_of_them, others, strict=True) if a.kernel_class != b.kernel_class}
    assert (
        changed
        == {
            "attention": {
                f"layers.3.self_attn.{name}.weight"
                for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
            },
            "feed_forward": {f"layers.3.mlp.shared_experts.{name}_proj.weight" for name in ("gate", "up", "down")},
            "experts": {"layers.3.mlp.gate_up_proj", "layers.3.mlp.down_proj"},
        }[product]
    )


def test_the_roofline_takes_the_slowest_of_three() -> None:
    h800 = machine("h800", 1)
    forward, peak = HOPPER.forward, 989e12 * HOPPER.forward["gemm"].value
    bandwidth = 3.35e12 * HOPPER.forward["memory"].value
    assert h800.kernel_seconds(forward, "gemm", 1e15, 1.0) == pytest.approx(1e15 / peak)
    assert h800.kernel_seconds(forward, "gemm", 1.0, 1e12) == pytest.approx(1e12 / bandwidth)
    assert h800.kernel_seconds(forward, "gemm", 1.0, 1.0) == HOPPER.kernel_floor.value

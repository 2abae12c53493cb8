"""The comparisons can fail: each catches faults planted, one at a time, into a copy of an emitted package."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from numerics import reference
from numerics.checks import (
    RAGGED,
    decode_error,
    errors_against_formulas,
    errors_against_transformers,
    greedy,
)
from numerics.families import LENGTH, case
from numerics.harness import Compile, OracleOf, Package, import_package, imported_text, random_model
from numerics.specs import SPECS, balanced

MODEL, DIMS, CHECKPOINT, DECODE, ENGINE = "model.py", "dims.py", "checkpoint.py", "infer/decode.py", "infer/engine.py"
BATCH, SCHEDULER, SAMPLING = "infer/batch.py", "infer/scheduler.py", "infer/sampling.py"
SOUND, CAUGHT = 1e-5, 1e-3


@dataclass(frozen=True)
class Fault:
    """`old` becomes `new` in a file of the package of a case of families, or of a spec of specs."""

    subject: str
    what: str
    old: str
    new: str
    file: str = MODEL

    def __str__(self) -> str:
        return f"{self.subject}: {self.what}"


NORMALISE = "weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)"
BIASED = "deepseek_v3-bias_down_to_-1"

TRANSFORMERS = [
    # rotary embedding
    Fault("deepseek_v3-base", "turned the other way", "torch.stack((-sin, sin), -1)", "torch.stack((sin, -sin), -1)"),
    Fault("deepseek_v3-base", "queries not turned", "q_rope = rotate(q_rope, rope)", "pass"),
    Fault("deepseek_v3-base", "keys not turned", "k_rope = rotate(k_rope, rope)", "pass"),
    Fault(
        "deepseek_v3-base",
        "the other layout",
        "x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)",
        "x.roll(x.shape[-1] // 2, -1)",
    ),
    Fault("deepseek_v3-half_layout", "the other sign", "torch.cat((-sin, sin), -1)", "torch.cat((sin, -sin), -1)"),
    Fault("deepseek_v3-base", "no ramp", "(1 - slow + slow / ROPE_FACTOR)", "1"),
    Fault("deepseek_v3-betas_1_1", "ramp one pair late", "(pair - YARN_LOW)", "(pair - 1 - YARN_LOW)"),
    Fault("deepseek_v3-base", "softmax scale not squared", "(ROPE_FACTOR) + 1) ** 2", "(ROPE_FACTOR) + 1)", DIMS),
    Fault("deepseek_v3-mscale_all_dim_0", "cos and sin not scaled", "rope = rope * ROPE_AMPLITUDE", "pass"),
    Fault("llama-base", "frequencies not scaled", "(fast + (1 - fast) / ROPE_FACTOR)", "1"),
    # attention
    Fault("deepseek_v3-base", "the future is seen", "is_causal=True", "is_causal=False"),
    Fault("deepseek_v3-base", "scale of the wide head", "QK_HEAD_DIM**-0.5", "QK_NOPE_HEAD_DIM**-0.5", DIMS),
    Fault(
        "deepseek_v3-base",
        "rotary part first",
        "q_nope, q_rope = q.split((QK_NOPE_HEAD_DIM, QK_ROPE_HEAD_DIM), -1)",
        "q_rope, q_nope = q.split((QK_ROPE_HEAD_DIM, QK_NOPE_HEAD_DIM), -1)",
    ),
    Fault("deepseek_v3-base", "no norm of the latent", "kv_latent = self.kv_a_layernorm(kv_latent)", "pass"),
    Fault("deepseek_v3-base", "no norm of the query latent", "q_latent = self.q_a_layernorm(q_latent)", "pass"),
    Fault("mistral-base", "a window of one token more", "- WINDOW + 1", "- WINDOW"),
    Fault("qwen3-base", "a window of one token less", "- SLIDING_WINDOW + 1", "- SLIDING_WINDOW + 2"),
    Fault(
        "qwen3-base",
        "windows on the other layers",
        "(SlidingDenseLayer, FullDenseLayer)",
        "(FullDenseLayer, SlidingDenseLayer)",
    ),
    Fault("qwen3_moe-base", "no norm of the query heads", "q = self.q_norm(q)", "pass"),
    # router
    Fault("deepseek_v3-base", "weights not normalised", NORMALISE, "pass"),
    Fault("deepseek_v3-not_normalised", "weights normalised", "weights = weights * ROUTED", f"{NORMALISE} * ROUTED"),
    Fault(
        "deepseek_v3-base",
        "the bias weighs",
        "scores.gather(-1, experts)",
        "(scores + self.e_score_correction_bias).gather(-1, experts)",
    ),
    Fault("deepseek_v3-base", "the bias does not choose", "scores.detach() + self.e_score_correction_bias", "scores"),
    Fault(BIASED, "closed groups filled with 0", "-math.inf", "0.0"),
    Fault("deepseek_v3-base", "best expert of a group", "groups.topk(2, -1).values.sum(-1)", "groups.amax(-1)"),
    Fault("deepseek_v2-base", "two best experts of a group", "groups.amax(-1)", "groups.topk(2, -1).values.sum(-1)"),
    Fault("deepseek_v3-base", "no scale", "weights * ROUTED_SCALING_FACTOR", "weights"),
    Fault("deepseek_v3-base", "the gate learns nothing", "scores.gather", "scores.detach().gather"),
    Fault("mixtral-base", "the other score", "logits.softmax(-1)", "logits.sigmoid()"),
    # experts and layers
    Fault("deepseek_v3-base", "no shared expert", "out + shared", "out"),
    Fault("deepseek_v3-base", "weights of other slots", ".flatten().index_select(0, order)", ".flatten()"),
    Fault("deepseek_v3-base", "gate and up exchanged", "gate, up = h.chunk(2, -1)", "up, gate = h.chunk(2, -1)"),
    Fault("llama-base", "gate and up exchanged", "F.silu(gate) * up", "F.silu(up) * gate"),
    Fault("llama-base", "no residual", "return x + h", "return h"),
    Fault("llama-base", "no final norm", "hidden = self.norm(x)", "hidden = x"),
    Fault("minicpm3-base", "embedding not multiplied", "x = x * EMBEDDING_MULTIPLIER", "pass"),
    Fault("minicpm3-base", "residual not multiplied", "h = h * RESIDUAL_MULTIPLIER", "pass"),
    Fault("minicpm3-base", "logits not multiplied", "hidden * LOGIT_MULTIPLIER", "hidden"),
    # weights
    Fault("mixtral-base", "gate and up exchanged on disk", '("w1", "w3")', '("w3", "w1")', CHECKPOINT),
    Fault("deepseek_v3-base", "shifted labels", "upcast(logits).flatten", "upcast(logits).roll(1, 1).flatten"),
]
FORMULAS = [
    Fault(
        "clamped_swiglu", "gate clamped from below too", "clamp(max=SWIGLU_LIMIT)", "clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)"
    ),
    Fault(
        "clamped_swiglu", "up clamped from above alone", "clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)", "clamp(max=SWIGLU_LIMIT)"
    ),
    Fault("latent_eps_unlike_norm_eps", "the norms' eps", "eps=LATENT_NORM_EPS", "eps=NORM_EPS"),
    Fault("experts_beside_grouped_attention", "the norms' eps", "eps=QK_NORM_EPS", "eps=NORM_EPS"),
    Fault("mtp", "halves exchanged", "torch.cat((ahead, x), -1)", "torch.cat((x, ahead), -1)"),
    Fault("mtp", "no norm of the state", "x = self.hnorm(x)", "pass"),
    Fault("mtp", "no norm of the embedding", "ahead = self.enorm(ahead)", "pass"),
    Fault("mtp", "state before the norm", "mtp_hidden = hidden[:, :-1]", "mtp_hidden = x[:, :-1]"),
    Fault("mtp_before_the_norm", "state after the norm", "mtp_x = x[:, :-1]", "mtp_x = hidden[:, :-1]"),
    Fault("mtp", "tokens not shifted", "mtp_tokens = tokens[:, 1:]", "mtp_tokens = tokens[:, :-1]"),
    Fault("mtp", "labels not shifted", "mtp_labels = labels[:, 1:]", "mtp_labels = labels[:, :-1]"),
    Fault("mtp_of_depth_2", "not divided by the depth", "(MTP_LOSS_WEIGHT / MTP_DEPTH)", "MTP_LOSS_WEIGHT"),
    Fault("mtp_of_depth_2", "one module for both depths", "self.mtp[1]", "self.mtp[0]"),
    Fault("sequence_balance_loss", "sum over sequences", "(f * p).sum(-1).mean()", "(f * p).sum()"),
    Fault("sequence_balance_loss", "scores as they are", "scores / scores.sum(-1, keepdim=True)", "scores"),
    Fault("sequence_balance_loss", "no gradient", "p = (scores /", "p = (scores.detach() /"),
    Fault(
        "sequence_balance_loss_of_softmax",
        "over the batch",
        "scores.mean(1)",
        "scores.mean((0, 1)).expand(len(scores), -1)",
    ),
    Fault("everything", "mtp's loss left out", "balance_loss = balance_loss + mtp_balance_loss", "pass"),
]
DECODING = [
    Fault("deepseek_v3-base", "everything visible", "(row <= last)", "(row <= last + 999)", BATCH),
    Fault("llama-base", "the token itself hidden", "(row <= last)", "(row < last)", BATCH),
    Fault("deepseek_v3-base", "positions from 0", "range(part.first, part.end)]", "range(len(part.tokens))]", BATCH),
    Fault("llama-base", "rows one slot late", "position % PAGE_SIZE if", "(position + 1) % PAGE_SIZE if", BATCH),
    Fault("mixtral-base", "keys kept unturned", "k = rotate(k, rope)", "pass", DECODE),
    Fault("qwen3_moe-base", "the first position's logits", "chosen = x[rows]", "chosen = x[rows * 0]", DECODE),
    Fault("deepseek_v3-base", "latents attended unscaled", "visible, scale=ATTENTION_SCALE", "visible", DECODE),
    Fault("deepseek_v3-base", "keys for values", "out_latent, module.w_uv", "out_latent, module.w_uk", DECODE),
    Fault("everything", "no scale", "weights * ROUTED_SCALING_FACTOR", "weights", DECODE),
]
GENERATION = [
    Fault("everything", "behind the first token", "begin + end - 1 - text.computed", "begin", ENGINE),
    Fault(
        "everything",
        "one token too many",
        ">= self.sampling.max_new_tokens else",
        "> self.sampling.max_new_tokens else",
        SCHEDULER,
    ),
    Fault("everything", "every guess is right", "token != guess or ", "", SCHEDULER),
    Fault("everything", "least likely token", "wide.argmax(-1)", "wide.argmin(-1)", SAMPLING),
]
UPDATES = [
    Fault("bias", "towards the load", "(load.mean() - load)", "(load - load.mean())"),
    Fault("bias", "no sign", "(load.mean() - load).sign()", "(load.mean() - load)"),
    Fault("bias", "another rate", "BIAS_UPDATE_RATE = 0.01", "BIAS_UPDATE_RATE = 0.02", DIMS),
]


@pytest.fixture
def planted(compiled: Compile, oracle_of: OracleOf, tmp_path: Path) -> Callable[[Fault], tuple[Package, Package]]:
    """The sound package that a fault is about, and a copy with the fault."""

    def plant(fault: Fault) -> tuple[Package, Package]:
        texts = SPECS | {"bias": balanced(bias_update_rate=0.01)}
        text = texts.get(fault.subject) or imported_text(oracle_of(case(fault.subject)))
        sound = compiled(text)
        folder = tmp_path / "faulty"
        shutil.copytree(sound.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        source = (folder / fault.file).read_text()
        assert fault.old in source, f"nothing to plant the fault into: {fault.old}"
        (folder / fault.file).write_text(source.replace(fault.old, fault.new))
        return sound, import_package(sound.spec, folder)

    return plant


Plant = Callable[[Fault], tuple[Package, Package]]


@pytest.mark.parametrize("fault", TRANSFORMERS, ids=str)
def test_against_transformers(fault: Fault, planted: Plant, oracle_of: OracleOf, tmp_path: Path) -> None:
    oracle = oracle_of(case(fault.subject))
    sound, faulty = (max(errors_against_transformers(p, oracle, tmp_path).values()) for p in planted(fault))
    assert sound < SOUND and faulty > CAUGHT


@pytest.mark.parametrize("fault", FORMULAS, ids=str)
def test_against_formulas(fault: Fault, planted: Plant) -> None:
    sound, faulty = (max(errors_against_formulas(package).values()) for package in planted(fault))
    assert sound < SOUND and faulty > CAUGHT


@pytest.mark.parametrize("fault", DECODING, ids=str)
def test_decoding(fault: Fault, planted: Plant) -> None:
    sound, faulty = (decode_error(package, [9, LENGTH - 11, 1, 1]) for package in planted(fault))
    assert sound < SOUND and faulty > CAUGHT


@pytest.mark.parametrize("fault", GENERATION, ids=str)
def test_generation(fault: Fault, planted: Plant) -> None:
    sound, faulty = (random_greedy(package) for package in planted(fault))
    assert sound and not faulty


def random_greedy(package: Package) -> bool:
    model = random_model(package)
    return package.engine.Engine(model).generate(RAGGED, 6) == [greedy(model, prompt, 6) for prompt in RAGGED]


@pytest.mark.parametrize("fault", UPDATES, ids=str)
def test_updates_of_the_bias(fault: Fault, planted: Plant) -> None:
    sound, faulty = (updates_right(package) for package in planted(fault))
    assert sound and not faulty


def updates_right(package: Package) -> bool:
    router = package.model.Router()
    loads = [5, 5, 3, 7, 5, 0, 10, 5]
    router.e_score_correction_bias.zero_()
    router.expert_load.copy_(torch.tensor(loads))
    expected = reference.updated_bias(router.e_score_correction_bias, loads, 0.01)
    router.update_selection_bias()
    return torch.equal(router.e_score_correction_bias, expected)

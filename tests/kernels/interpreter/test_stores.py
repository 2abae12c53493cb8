"""Every store of every kernel, its mask dropped: what lies past the last row or column is never written unseen."""

import re
from collections.abc import Iterator, Mapping

import pytest
from kernels.interpreter.test_inputs import KEYS, MODELS, NAMES, check
from kernels.lab import package, printed, spec_with
from kernels.watched import OutOfRange, Race

MASKED = re.compile(r"tl\.store\((.+), mask=.+\)$", re.MULTILINE)
UNEVEN: Mapping[str, Mapping[str, int]] = {
    "expert_dispatch": {"ffn__moe__n_routed_experts": 12},
    "fp8_quantize": {"hidden_size": 200, "ffn__moe__moe_intermediate_size": 200},
    "latent_cache": {"attention__kv_lora_rank": 48, "attention__q_lora_rank": 96, "attention__qk_rope_head_dim": 12},
    "rms_norm": {"hidden_size": 200, "attention__kv_lora_rank": 48, "attention__q_lora_rank": 96},
    "swiglu_quantize": {"ffn__moe__moe_intermediate_size": 200},
}
"""Sizes for kernels whose tiles hold those of tiny without rest."""


def without_a_mask(name: str, changes: Mapping[str, object]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each store of a kernel, or of the functions store_* that it imports, and its files with that store unmasked."""
    files = printed((name,), spec_with(MODELS.get(name, "tiny"), {k.replace("__", "."): v for k, v in changes.items()}))
    own = f"{name}.py"
    for file, text in files.items():
        for store in MASKED.finditer(text):
            (*_, function) = re.findall(r"^def (\w+)", text[: store.start()], re.MULTILINE)
            if file == own or re.search(rf"import .*\b{function}\b", files[own]):
                unmasked = f"{text[: store.start()]}tl.store({store[1]}){text[store.end() :]}"
                yield store[0], {**files, file: unmasked}


@pytest.mark.parametrize("name", [n if n == "router" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_store_without_its_mask_is_caught(name: str) -> None:
    uneven = UNEVEN.get(name, {})
    stores = 0
    for store, files in without_a_mask(name, {**KEYS, **uneven}):
        try:
            check(name, package(files, (name,))[0], **uneven)
        except (OutOfRange, Race):
            stores += 1
        else:
            pytest.fail(f"kernels/{name}.py may write anywhere: {store}")
    assert stores

"""The trainer's curve is that of transformers' model in a plain loop of torch's parts: same weights, same tokens."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from dsc.compiler.driver import build, emit
from dsc.spec.loader import load
from dsc.spec.model import ModelSpec

STEPS, BATCH, LENGTH, WARMUP, DECAY = 50, 4, 32, 10, 20
PEAK, FLOOR = 3e-3, 0.1
MODELS = ("deepseek-v3", "mixtral-8x7b", "llama-3.1-8b", "qwen3-30b-a3b")


def plain(spec: ModelSpec) -> ModelSpec:
    """In float32, without what transformers does not train: further tokens, and terms that balance experts."""
    value = spec.model_dump(mode="json")
    value |= {"mtp": None, "cluster": None, "precision": {"parameters": "fp32", "kv_cache": "fp32"}}
    moe = value["ffn"]["moe"]
    if moe is not None:
        moe["router"]["balance"] = {}
    return ModelSpec.model_validate(value)


@pytest.mark.parametrize("name", MODELS)
def test_fifty_steps_are_those_of_transformers(name: str, emitted: Any, shrunk: Any, tmp_path: Path) -> None:
    package = emitted(emit(build(plain(shrunk(load(name))))))
    corpus = tmp_path / "tokens.npy"
    tokens = np.random.default_rng(0).zipf(1.5, 5000) % 90
    np.save(corpus, tokens.astype(np.uint16))
    ours = losses_of_the_trainer(package, corpus, tmp_path)
    theirs = losses_of_transformers(package, corpus, tmp_path)
    assert ours[0] > 1.1 * ours[-1], "it learns"
    assert max(abs(a / b - 1) for a, b in zip(ours, theirs, strict=True)) < 5e-5


def losses_of_the_trainer(package: Any, corpus: Path, folder: Path) -> list[float]:
    """By its command line; its weights as they were drawn lie in `folder`/drawn then."""
    single, metrics = package("train.single").Single, folder / "metrics.jsonl"
    drawn = single(torch.device("cpu"), torch.float32, 7, BATCH, BATCH)
    package("checkpoint").save_hf(drawn.model, folder / "drawn")
    options = {
        "data": corpus, "metrics": metrics, "steps": STEPS, "batch-size": BATCH, "sequence-length": LENGTH, "seed": 7,
        "learning-rate": PEAK, "warmup-steps": WARMUP, "decay-steps": DECAY, "min-learning-rate-ratio": FLOOR,
        "dtype": "float32", "device": "cpu",
    }  # fmt: skip
    trainer = package("train.train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sys, "argv", ["train", *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
        )
        trainer.train(trainer.parse_arguments())
    torch.use_deterministic_algorithms(False)
    return [json.loads(line)["main"] for line in metrics.read_text().splitlines()]


def losses_of_transformers(package: Any, corpus: Path, folder: Path) -> list[float]:
    """Nothing of ours but the order of the tokens: AdamW, its groups, the schedule and clipping are written out."""
    data = package("train.data")
    batches = data.Batches(data.split(data.load_tokens(corpus, None))[0], BATCH, LENGTH, 7)
    model = AutoModelForCausalLM.from_pretrained(folder / "drawn", dtype=torch.float32).train()
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.95))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP, 1, WARMUP - 1)
    stable = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DECAY, PEAK * FLOOR)
    turns = [WARMUP - 1, STEPS - DECAY - 1]
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, stable, decay], turns)
    losses = []
    for step in range(STEPS):
        tokens, labels = batches.batch(step, slice(0, BATCH))
        loss = F.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses

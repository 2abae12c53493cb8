"""The comparisons: an emitted package against transformers, the written formulas, and itself without caches.

Each gives relative errors, so that one test can ask that they are small and another, with a fault planted, that they
are not.
"""

import copy
from dataclasses import replace
from pathlib import Path

import torch
from decoding import chunk_logits
from numerics import reference
from numerics.harness import (
    SINGLE,
    Oracle,
    Package,
    Tensors,
    errors,
    gradients_of,
    holding_gradients,
    is_bias,
    next_tokens,
    random_model,
    relative_error,
    some_tokens,
)
from safetensors.torch import load_file
from torch import Tensor, nn

RAGGED = [[3, 14, 15, 9], [26], [5, 35, 8, 9, 7, 9, 32], [38, 46]]


def errors_against_transformers(package: Package, oracle: Oracle, folder: Path) -> dict[str, float]:
    """Logits, loss and gradients in float32; `folder` is for files in passing."""
    tokens = some_tokens()
    found = outputs_of_package(package, package.load(oracle.folder), tokens)
    return errors(found, outputs_of_oracle(oracle, tokens, folder))


def errors_apart(package: Package, oracle: Oracle, folder: Path) -> dict[str, float]:
    """The same in two parts: the package against transformers in float64, and the package's rounding to float32."""
    tokens, wide = some_tokens(), replace(oracle, model=copy.deepcopy(oracle.model).double())
    exact = outputs_of_package(package, package.load(oracle.folder).double(), tokens)
    rounded = errors(outputs_of_package(package, package.load(oracle.folder), tokens), exact)
    return {
        **errors(exact, outputs_of_oracle(wide, tokens, folder)),
        **{f"{name}, rounded": error for name, error in rounded.items()},
    }


def outputs_of_oracle(oracle: Oracle, tokens: Tensor, folder: Path) -> Tensors:
    """Logits, loss and every gradient under its checkpoint name, which transformers itself gives: it saves a copy
    of the model that holds gradients in the place of weights."""
    oracle.model.zero_grad()
    result = oracle.model(tokens, labels=tokens, use_cache=False)
    result.loss.backward()
    holding_gradients(oracle.model).save_pretrained(folder)
    saved = load_file(folder / SINGLE).items()
    gradients = {name: t for name, t in saved if t.numel() and not is_bias(name)}
    return {"logits": result.logits.detach(), "loss": result.loss.detach(), **gradients}


def outputs_of_package(package: Package, model: nn.Module, tokens: Tensor) -> Tensors:
    """The same of an emitted model."""
    model.zero_grad()
    logits = model(tokens)
    _, parts = model.loss(tokens, next_tokens(tokens))
    parts["main"].backward()
    return {"logits": logits.detach(), "loss": parts["main"].detach(), **gradients_of(package, model)}


def errors_against_formulas(package: Package) -> dict[str, float]:
    model, tokens = random_model(package), some_tokens(length=11)
    labels = next_tokens(tokens)
    labels[0, 3:5] = -100
    total, parts = model.loss(tokens, labels)
    total.backward()

    weights = {name: tensor.double().requires_grad_() for name, tensor in package.tensors(model).items()}
    written = reference.losses(tokens, labels, weights, package.spec)
    expected = {"main": written.main, "mtp": written.mtp, "balance": written.balance}
    expected_total = torch.stack(list(expected.values())).sum()
    expected_total.backward()
    return errors(
        {"logits": model(tokens), "loss": total, **parts, **gradients_of(package, model)},
        {
            "logits": reference.logits(tokens, weights, package.spec),
            "loss": expected_total,
            **{name: expected[name] for name in parts},
            **{n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in weights.items() if not is_bias(n)},
        },
    )


def decode_error(package: Package, chunks: list[int]) -> float:
    model, tokens = random_model(package), some_tokens()
    positions = torch.tensor(chunks).cumsum(0) - 1
    return relative_error(chunk_logits(package.importer, model, tokens, chunks), model(tokens)[:, positions])


def greedy(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]

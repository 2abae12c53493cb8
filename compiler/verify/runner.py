"""Runs two emitted packages and measures whether they do what the graph says; `dsc verify` starts it as a process.

    python runner.py FOLDER FULL SMALL EXPECTED.json

FOLDER holds the packages FULL, which is only built on the meta device, and SMALL, which is trained and decoded.
EXPECTED.json has the shape of every parameter of both. Prints the checks as JSON. It imports nothing of dsc.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, list[int]]
Check = dict[str, object]

BATCH, LENGTH, PROMPT = 2, 24, 7
DIRECTIONS = 4
# Of the finite differences. Their error is least at the first in float64; where another expert is chosen on the way, so
# that the loss jumps, a shorter one avoids that. A wrong gradient is wrong at each.
STEPS = (1e-4, 1e-5, 1e-6)
GRADIENT_BOUND = 1e-6
CACHE_BOUND = 1e-10


def main(folder: str, full: str, small: str, expected: str) -> None:
    sys.path.insert(0, folder)
    torch.manual_seed(0)
    with open(expected, encoding="utf-8") as file:
        shapes: dict[str, Shapes] = json.load(file)
    checks = [
        check("parameters at full size", 0, lambda: wrong_shapes(full, shapes["full"])),
        check("parameters, shrunk", 0, lambda: wrong_shapes(small, shapes["small"])),
        check("parameters without a finite gradient", 0, lambda: without_gradient(small)),
        check("gradients against finite differences", GRADIENT_BOUND, lambda: gradient_error(small)),
        check("decoding with the cache against the full forward", CACHE_BOUND, lambda: cache_error(small)),
        check("tensors changed by save_hf and load_hf", 0, lambda: changed_tensors(small)),
    ]
    print(json.dumps(checks))


def check(name: str, bound: float, measure: Callable[[], float]) -> Check:
    """A figure against its bound; emitted code that raises has failed its check, and the others go on."""
    try:
        measured = measure()
    except Exception as error:
        return {"name": name, "bound": bound, "measured": None, "error": f"{type(error).__name__}: {error}"}
    return {"name": name, "bound": bound, "measured": measured, "error": None}


def wrong_shapes(package: str, expected: Shapes) -> int:
    """Parameters that only the graph or only the model has, or that differ in shape."""
    with torch.device("meta"):
        model = new_model(package)
    found = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    return sum(found.get(name) != expected.get(name) for name in {*found, *expected})


def without_gradient(package: str) -> int:
    """Parameters that training would not reach; every one of them where the loss itself is not finite."""
    model = new_model(package)
    loss = loss_of(model)
    torch.autograd.backward(loss)
    reached = [p for p in model.parameters() if p.grad is not None and p.grad.isfinite().all() and p.grad.any()]
    return len(list(model.parameters())) - (len(reached) if loss.isfinite() else 0)


def gradient_error(package: str) -> float:
    """Largest error of the derivative along random directions, relative to what the tensors contribute to it."""
    model = new_model(package).double()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss_of(model), parameters)
    worst = 0.0
    for _ in range(DIRECTIONS):
        direction = [torch.randn_like(parameter) for parameter in parameters]
        direction = [tensor / tensor.norm() for tensor in direction]  # each parameter counts the same
        slopes = torch.stack([(gradient * tensor).sum() for gradient, tensor in zip(gradients, direction, strict=True)])
        measured = torch.stack([slope(model, direction, step) for step in STEPS])
        worst = max(worst, float((measured - slopes.sum()).abs().min() / slopes.norm()))
    return worst


@torch.no_grad()
def slope(model: Any, direction: list[Tensor], step: float) -> Tensor:
    """Of the loss along a direction, from its values a step ahead and a step behind."""
    parameters = list(model.parameters())
    starts = [parameter.clone() for parameter in parameters]
    losses = []
    for signed in (step, -step):
        for parameter, start, tensor in zip(parameters, starts, direction, strict=True):
            parameter.copy_(start + signed * tensor)
        losses.append(loss_of(model))
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.copy_(start)
    return (losses[0] - losses[1]) / (2 * step)


@torch.no_grad()
def cache_error(package: str) -> float:
    """Largest difference of logits, relative to the largest logit: a prompt at once, then token by token."""
    engine, batch = (importlib.import_module(f"{package}.infer.{name}") for name in ("engine", "batch"))
    decode = importlib.import_module(f"{package}.infer.decode")
    model = new_model(package).double()
    tokens = random_tokens(model)
    full = model(tokens)
    running = engine.Engine(model)
    holder = getattr(running, "layout", running)  # of prepared weights; for CPUs their layout is chosen as texts come
    pages = [running.pool.take(LENGTH) for _ in tokens]
    worst = 0.0
    for start, end in [(0, PROMPT), *((position, position + 1) for position in range(PROMPT, LENGTH))]:
        parts = [batch.Part(held, 0, start, row[start:end]) for held, row in zip(pages, tokens.tolist(), strict=True)]
        packed, described = batch.pack(parts, running.device)
        rows = torch.arange(1, len(tokens) + 1) * (end - start) - 1
        made = decode.model_forward(holder.module, packed, rows, described, running.caches[: len(model.layers)])
        logits = made[0] if isinstance(made, tuple) else made
        worst = max(worst, float((logits - full[:, end - 1]).abs().max()))
    return worst / float(full.abs().max())


def changed_tensors(package: str) -> int:
    """Tensors that differ, bit for bit, in a second model that loads what the first one saved."""
    checkpoint = importlib.import_module(f"{package}.checkpoint")
    first, second = new_model(package), new_model(package)
    with torch.no_grad():
        for buffer in first.buffers():
            buffer.copy_(torch.arange(buffer.numel()).view_as(buffer))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one about tensors that are not there
        checkpoint.save_hf(first, folder)
        checkpoint.load_hf(second, folder)
    loaded = second.state_dict()
    return sum(not torch.equal(tensor, loaded[name]) for name, tensor in first.state_dict().items())


def new_model(package: str) -> Any:
    return importlib.import_module(f"{package}.model").Model()


def loss_of(model: Any) -> Tensor:
    """Of the same few tokens each time."""
    tokens = random_tokens(model)
    loss: Tensor = model.loss(tokens[:, :-1], tokens[:, 1:])[0]
    return loss


def random_tokens(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.embed_tokens.num_embeddings, (BATCH, LENGTH), generator=generator)


if __name__ == "__main__":
    main(*sys.argv[1:])

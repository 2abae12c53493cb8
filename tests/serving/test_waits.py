"""A step that writes texts, traced for a GPU that is not there: nothing in it waits for the host, the host waits for
nothing but the chosen tokens, and no launch depends on how long the texts are.

Tensors have no numbers: whatever needs some raises an error. Bodies of operators run too, up to the launches of their
kernels, which are written down.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import pytest
import torch
from numerics.harness import Package
from serving.packages import Change, package_of
from serving.test_graphs import small
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.jit import JITFunction

from dsc.spec.model import ModelSpec

REGISTERED = "torch.library.custom_op(op_name(module, name), run, mutates_args=mutates_args)"
AS_THEY_ARE = """class Plain:
    def __init__(self, run):
        self.run = run

    def __call__(self, *arguments):
        return self.run(*arguments)

    def register_fake(self, function):
        return function

    def register_autograd(self, *functions, **more):
        pass


def op_name("""
PLAIN = "kernels/launch.py", (REGISTERED, "Plain(run)"), ("def op_name(", AS_THEY_ARE)
"""Operators as plain functions: of one that is registered, only what it says of its results would run."""

DECODE = "infer/decode.py"
Launch = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A kernel, its grid, and the whole numbers that it is told."""


class Waits(Exception):
    """The host and the device wait for each other."""


class Watch(TorchDispatchMode):
    """Refuses copies from the host to the device that the host waits for; `ran` are the names of what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        devices = {leaf.device.type for leaf in tree_leaves(args) if isinstance(leaf, Tensor)}
        goes = (kwargs or {}).get("device")
        if "cpu" in devices and (goes is not None or len(devices) > 1) and not (kwargs or {}).get("non_blocking"):
            raise Waits(func)
        result = func(*args, **(kwargs or {}))
        self.ran.add(func.__name__)
        return result


@contextmanager
def on_a_gpu() -> Iterator[list[Launch]]:
    """Within, tensors of a GPU can be made, and launches are written down in place of being made."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False)) | options
        size = grid(named) if callable(grid) else grid
        told = tuple(value for value in args if isinstance(value, int))
        launches.append((self.__name__, tuple(size), told))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        patch.setattr(torch.cuda, "device_of", lambda tensor: nullcontext())
        patch.setattr(torch, "is_autocast_enabled", lambda device: False)
        patch.setattr(torch.cuda, "CUDAGraph", Nothing)
        patch.setattr(torch.cuda, "graph", lambda graph, pool: Watch())
        patch.setattr(torch.cuda, "graph_pool_handle", object)
        yield launches


class Nothing:
    """In place of torch.cuda.CUDAGraph: what was made at capture stays."""

    def replay(self) -> None:
        pass


def in_fp8() -> ModelSpec:
    data = small("deepseek-v3").model_dump()
    data["precision"]["linear"] = {"kind": "fp8_block"}
    return ModelSpec.model_validate(data)


SPECS: dict[str, Callable[[], ModelSpec]] = {
    "deepseek-v3": in_fp8,
    "deepseek-v3 in bf16": lambda: small("deepseek-v3"),
    "llama-3.1-8b": lambda: small("llama-3.1-8b"),
}

ON_META = "infer/engine.py", ('self.device.type == "cuda"', 'self.device.type == "meta"')
KERNELS = "kernels/launch.py", ("(x.is_cuda or", "(x.is_meta or")


@cache
def package(name: str, change: Change | None = None) -> Package:
    return package_of(SPECS[name](), PLAIN, ON_META, KERNELS, *([] if change is None else [change]))


def engine(emitted: Package) -> Any:
    with torch.device("meta"):
        model = emitted.model.Model().bfloat16()
    return emitted.engine.Engine(model, cache_bytes=2**24, max_running=4)


def step(emitted: Package, made: Any, length: int) -> tuple[Any, ...]:
    """Logits behind texts of so many tokens, each with a guess where the model makes some; and those of guesses."""
    parts, rows = texts(emitted, made, length), list(range(3 * made.graphs.new))
    result = made.graphs.forward(parts, rows)
    if not hasattr(made.graphs, "draft"):
        return (result,)
    logits, hidden = result
    return logits, made.graphs.draft(hidden, parts, rows)


def texts(emitted: Package, made: Any, length: int) -> list[Any]:
    part, pages = emitted.importer("infer.batch").Part, list(range(1, 2 + length // 64))
    return [part(pages, 0, length - made.graphs.new, [3] * made.graphs.new)] * 3


def nothing_waits(emitted: Package) -> None:
    sampling = emitted.importer("infer.sampling")
    drawn = {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "presence_penalty": 0.5, "bias": {3: 1.0}}
    with on_a_gpu() as launches, torch.inference_mode():
        made = engine(emitted)
        assert launches
        with Watch() as watch:
            for logits in step(emitted, made, 130):
                for way in ({}, drawn):
                    rows = [sampling.Row(sampling.Sampling(**way), 2, [1, 2, 3, 4], 4)] * len(logits)
                    watch.ran.clear()
                    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
                        sampling.choose(logits, rows)
                    assert "argmax.default" in watch.ran


@pytest.mark.parametrize("name", SPECS)
def test_nothing_waits_until_the_tokens_are_read(name: str) -> None:
    nothing_waits(package(name))


WAITING: dict[str, tuple[Change, type[Exception], str]] = {
    "numbers that the host waits for": (
        ("infer/batch.py", ("non_blocking=True", "non_blocking=False")),
        Waits,
        r"aten\.to",
    ),
    "a number that the host reads": (
        (DECODE, ("experts, NUM_EXPERTS)", "experts, max(NUM_EXPERTS, experts.max().item()))")),
        RuntimeError,
        r"Tensor\.item\(\)",
    ),
    "a mask": (
        (DECODE, ("logits = router_logits(x,", "logits = router_logits(x[x.isfinite().all(-1)],")),
        NotImplementedError,
        r"torch\.nonzero\(\)",
    ),
}
"""Each with the error that names what waits."""


@pytest.mark.parametrize("fault", WAITING)
def test_what_waits_is_seen(fault: str) -> None:
    change, error, name = WAITING[fault]
    with pytest.raises(error, match=name):
        nothing_waits(package("deepseek-v3 in bf16", change))


def launched(emitted: Package, packed: bool) -> list[list[Launch]]:
    """The launches of a step for texts of 130 tokens and of 900, as it is captured or as it runs without."""
    decode, batch = emitted.importer("infer.decode"), emitted.importer("infer.batch")
    found = []
    with on_a_gpu() as launches, torch.inference_mode():
        made = engine(emitted)
        caches = made.caches[: emitted.spec.num_layers]
        for length in (130, 900):
            parts, size = texts(emitted, made, length), (4, made.graphs.new)
            made.graphs.inputs.fill(parts, size)
            told = batch.pack(parts, made.device) if packed else made.graphs.inputs.batch(size)
            launches.clear()
            decode.model_forward(made.module, told[0], made.graphs.rows[: len(told[0])], told[1], caches)
            found.append(list(launches))
    return found


@pytest.mark.parametrize("name", SPECS)
def test_launches_of_a_graph_are_the_same_for_any_lengths(name: str) -> None:
    short, long = launched(package(name), packed=False)
    assert short == long
    short, long = launched(package(name), packed=True)
    assert short != long  # without a graph, attention is divided by the longest text


def test_a_launch_that_depends_on_lengths_is_seen() -> None:
    change = (
        "infer/graphs.py",
        ("        width = -(-max(ends)", "        width = self.width = -(-max(ends)"),
        ("self.table[:texts], self", 'self.table[:texts, : getattr(self, "width", 1)], self'),
    )
    short, long = launched(package("llama-3.1-8b", change), packed=False)
    assert short != long

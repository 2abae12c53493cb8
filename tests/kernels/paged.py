"""What the tests of the paged latent cache share: kernels for both kinds of rows, and caches full of poison."""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from kernels.lab import package, printed, spec_with
from torch import Tensor

NAMES = ("latent_cache", "mla_decode")


@cache
def texts(rows: str, zoo: str = "tiny", arch: str = "sm_90", **changes: Any) -> dict[str, str]:
    """Both kernel files for a model of the zoo, rows "plain" or "fp8"; `changes` are spec keys with __ for the dot."""
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    spec = spec_with(zoo, keys | ({"precision.kv_cache": "fp8"} if rows == "fp8" else {}))
    return printed(NAMES, spec, arch)


@cache
def kernels(rows: str, zoo: str = "tiny", arch: str = "sm_90", **changes: Any) -> list[ModuleType]:
    return package(texts(rows, zoo, arch, **changes), NAMES)


def mutated(name: str, old: str, new: str, rows: str, **changes: Any) -> list[ModuleType]:
    """Both modules, with one planted fault in one of them: `old`, there exactly once, becomes `new`."""
    files = texts(rows, **changes)
    text = files[f"{name}.py"]
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
    return package({**files, f"{name}.py": text.replace(old, new)}, NAMES)


def poisoned_cache(write: ModuleType, num_pages: int, dtype: torch.dtype) -> Tensor:
    """A cache of NaNs: of bytes that are NaN as float8, bfloat16 and float32 alike where the rows are bytes."""
    fp8 = hasattr(write, "GROUP")
    return write.empty_cache(num_pages, torch.empty(0, dtype=dtype)).fill_(255 if fp8 else float("nan"))


def turns(write: ModuleType, num_positions: int, half: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """cos and signed sin of positions for both components of each pair: [2, P, R]."""
    rotary = write.QK_ROPE_HEAD_DIM
    frequency = 10000.0 ** (torch.arange(0, rotary, 2, dtype=torch.float64) / -rotary)
    angle = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequency)
    cos, sin = angle.cos(), angle.sin()
    if half:
        return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).to(dtype)
    return torch.stack((torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1))).flatten(-2).to(dtype)

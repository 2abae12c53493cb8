"""A model's products in FP8 as DeepSeek-V3's report defines them, in plain PyTorch: knows nothing of the kernels."""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 128
WIDE = ("lm_head", "eh_proj")  # section 3.3.1: these layers are no products in FP8; the router is no nn.Linear


def quantized(x: Tensor, rows: int, columns: int) -> Tensor:
    """What codes of x stand for, one scale for so many rows and columns: [..., M, K] float32."""
    m, k = x.shape[-2:]
    padded = F.pad(x.float(), (0, -k % columns, 0, -m % rows))
    blocks = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
    scale = blocks.abs().amax((-3, -1), keepdim=True).clamp(min=1e-12) / 448
    codes = (blocks * (1 / scale)).to(torch.float8_e4m3fn)
    return (codes.float() * scale).flatten(-4, -3).flatten(-2)[..., :m, :k]


class Linear(torch.autograd.Function):
    """x @ weight.T and both gradients; every product runs along the blocks of its operands."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return (quantized(x, 1, BLOCK) @ quantized(weight, BLOCK, BLOCK).T).to(x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        dx = quantized(dy, 1, BLOCK) @ quantized(weight, BLOCK, BLOCK)
        dw = quantized(dy.flatten(0, -2), BLOCK, 1).T @ quantized(x.flatten(0, -2), BLOCK, 1)
        return dx.to(x.dtype), dw.to(weight.dtype)


class GroupedLinear(torch.autograd.Function):
    """Each expert's rows by its own weight; the weights' gradients stay wide.

    Gate and up lie one above the other: the width of experts must be whole in blocks, or one would lie in both.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.starts = ends[:-1].tolist()
        rows = quantized(x, 1, BLOCK).tensor_split(ctx.starts)
        weights = quantized(weight, BLOCK, BLOCK)
        return torch.cat([one @ w.T for one, w in zip(rows, weights, strict=True)]).to(x.dtype)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        rows, weights = quantized(dy, 1, BLOCK).tensor_split(ctx.starts), quantized(weight, BLOCK, BLOCK)
        dx = torch.cat([one @ w for one, w in zip(rows, weights, strict=True)])
        pairs = zip(dy.float().tensor_split(ctx.starts), x.float().tensor_split(ctx.starts), strict=True)
        return dx.to(x.dtype), torch.stack([one.T @ two for one, two in pairs]).to(weight.dtype), None


def emulate(model: nn.Module) -> None:
    """Makes a model without kernels multiply in FP8, it and every other of its package."""
    sys.modules[type(model).__module__].grouped_mm = GroupedLinear.apply  # type: ignore[attr-defined]
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not name.endswith(WIDE):
            module.forward = lambda x, module=module: Linear.apply(x, module.weight)  # type: ignore[method-assign]

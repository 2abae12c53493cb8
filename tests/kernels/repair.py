"""A repair of Triton's interpreter, for tests (its faults were seen in 3.6.0, 3.7.1 and 3.9.0).

The interpreter computes with numpy, which has neither bfloat16 nor float8, and is wrong about both:

- bfloat16 tensors are raw uint16, so that +, *, exp, max, tl.dot and int -> bfloat16 act on the bit pattern;
- float32 -> bfloat16 truncates, where a GPU rounds to the nearest, ties to even;
- float32 -> float8 loses the carry into the exponent (31.3 -> 16), rounds ties up, truncates subnormals and does not
  saturate; the NaN codes of float8 decode to 480;
- tl.dot of float8 goes through float16.

It also computes tl.dot of float32 exactly whatever `input_precision` says, where a GPU would take TF32 by default: here
anything but "ieee" is an error.

Here bfloat16 is computed in float32 and rounded after every operation, and conversions are torch's own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton._C.libtriton.ir import INPUT_PRECISION
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5b16": torch.float8_e5m2fnuz,
}
LARGEST = {"fp8e4nv": 448.0, "fp8e5": 57344.0}  # what GPUs saturate to
BITS = {8: (np.uint8, torch.uint8), 16: (np.uint16, torch.int16), 32: (np.uint32, torch.int32)}
BITS[64] = (np.uint64, torch.int64)
PATCHED = ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_erf", "create_clampf")


def install() -> None:
    """Once, after triton is imported under TRITON_INTERPRET=1 and before the first launch."""
    assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before triton is imported"
    interpreter._convert_float = _convert
    for name in PATCHED:
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    InterpreterBuilder.get_bf16 = lambda self, value: _narrow(TensorHandle(np.array([value], np.float32), tl.float32))


def _convert(data: np.ndarray, source: Any, target: Any, rounding_mode: Any) -> np.ndarray:
    """Bit-exact; float8 saturates like cvt.rn.satfinite: inf to the largest number, NaN stays NaN."""
    signed = BITS[source.primitive_bitwidth][1]
    bits = torch.from_numpy(np.array(data, ndmin=1, copy=True).view(np.dtype(str(signed)[6:])))
    x = bits.view(TORCH[source.name])
    if target.name in LARGEST and source.primitive_bitwidth > 8:
        x = x.float()
        x = torch.where(x.isnan(), x, x.clamp(-LARGEST[target.name], LARGEST[target.name]))
    unsigned, signed = BITS[target.primitive_bitwidth]
    return x.to(TORCH[target.name]).contiguous().view(signed).numpy().view(unsigned).reshape(data.shape)


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, TensorHandle) and value.dtype.scalar == tl.bfloat16


def _is_float8(value: TensorHandle) -> bool:
    return value.dtype.scalar.primitive_bitwidth == 8 and value.dtype.scalar.is_floating()


def _wide(value: Any) -> Any:
    """bfloat16 as float32; anything else as it is."""
    if not _is_bfloat16(value):
        return value
    return TensorHandle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrow(value: TensorHandle) -> TensorHandle:
    """float32 rounded to bfloat16; the outcome of a comparison stays what it is."""
    if value.data.dtype == np.bool_:
        return value
    return TensorHandle(_convert(value.data.astype(np.float32), tl.float32, tl.bfloat16, None), tl.bfloat16)


def _in_float32(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def operation(self: InterpreterBuilder, *arguments: Any, **options: Any) -> TensorHandle:
        if not any(_is_bfloat16(value) for value in arguments):
            return original(self, *arguments, **options)
        return _narrow(original(self, *(_wide(value) for value in arguments), **options))

    return operation


def _dot(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def operand(value: TensorHandle) -> np.ndarray:
        if _is_float8(value):
            return _convert(value.data, value.dtype.scalar, tl.float32, None).view(np.float32)
        return _wide(value).data

    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, c: TensorHandle, *rest: Any) -> TensorHandle:
        if not any(_is_bfloat16(value) or _is_float8(value) for value in (a, b)):
            assert a.dtype.scalar != tl.float32 or rest[0] == INPUT_PRECISION.IEEE, "a GPU would round these to TF32"
            return original(self, a, b, c, *rest)
        return TensorHandle(np.matmul(operand(a), operand(b)) + c.data, c.dtype.scalar)

    return dot


def _cast(original: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    def cast(self: InterpreterBuilder, value: TensorHandle, target: Any) -> TensorHandle:
        source, scalar = value.dtype.scalar, target.scalar
        if source == scalar:
            return value
        if source == tl.bfloat16:
            return _wide(value) if scalar == tl.float32 else cast(self, _wide(value), target)
        if scalar == tl.bfloat16:
            return _narrow(TensorHandle(value.data.astype(np.float32), tl.float32))
        return original(self, value, target)

    return cast

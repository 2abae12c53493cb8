"""Test-only repair of Triton's interpreter (seen on 3.6.0, 3.7.1 and 3.9.0; 2026-11).

What is wrong upstream (see c_interpret_*.log):
  * bfloat16 tensors are raw uint16: + - * /, exp, max, tl.dot, int->bf16 act on the BIT PATTERN (garbage);
  * f32 -> bf16 truncates (GPU: round to nearest even);
  * f32 -> fp8 loses the carry into the exponent (31.3 -> 16), rounds ties up, truncates subnormals,
    does not saturate; fp8 NaN codes decode to 480;
  * tl.dot on fp8 goes through fp16 (fine for e4m3), bf16 atomics / desc.atomic_add do not exist;
  * @triton.autotune with more than one config asks for an active GPU driver.

install() must be called after `import triton` and before the first launch, with TRITON_INTERPRET=1
already in the environment when triton was imported.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as I

_T = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5": torch.float8_e5m2,
    "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5b16": torch.float8_e5m2fnuz,
}
_MAX = {"fp8e4nv": 448.0, "fp8e5": 57344.0}
_U = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_TU = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


def _to_torch(data, dt):
    a = np.ascontiguousarray(data)
    a = a.view({8: np.uint8, 16: np.int16, 32: np.int32, 64: np.int64}[dt.primitive_bitwidth])
    return torch.from_numpy(a.copy()).view(_T[dt.name])


def _from_torch(t, dt):
    return t.contiguous().view(_TU[dt.primitive_bitwidth]).numpy().view(_U[dt.primitive_bitwidth])


def convert_float(data, src, dst, rounding_mode):
    """bit-exact conversion; fp8 saturates like cvt.rn.satfinite (finite -> +-max, NaN stays NaN, inf -> max)."""
    shape = data.shape
    t = _to_torch(np.atleast_1d(data), src)
    if dst.name in _MAX and src.primitive_bitwidth > 8:
        t = t.float()
        t = torch.where(t.isnan(), t, t.clamp(-_MAX[dst.name], _MAX[dst.name]))
    return _from_torch(t.to(_T[dst.name]), dst).reshape(shape)


def _is_bf(h):
    return isinstance(h, I.TensorHandle) and h.dtype.scalar == tl.bfloat16


def _up(h):
    if not _is_bf(h):
        return h
    d = (h.data.astype(np.uint32) << 16).view(np.float32)
    return I.TensorHandle(d, tl.float32)


def _down(h, dtype=tl.bfloat16):
    d = h.data
    if d.dtype == np.bool_:
        return h
    return I.TensorHandle(convert_float(d.astype(np.float32), tl.float32, tl.bfloat16, None), tl.bfloat16)


class _FakeDriver:
    """just enough for @triton.autotune: 'time' = number of the call, so the first config wins."""

    def get_benchmarker(self):
        n = [0]

        def bench(fn, quantiles=None, **kw):
            fn()
            n[0] += 1
            return [float(n[0])] * 3

        return bench

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, d=None):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")


def install():
    assert triton.knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before triton is imported"
    B = I.InterpreterBuilder
    if getattr(B, "_dsc_shim", False):
        return
    B._dsc_shim = True
    I._convert_float = convert_float

    def wrap(name, res_bf=True):
        old = getattr(B, name)

        def new(self, *a, **k):
            if not any(_is_bf(x) for x in a):
                return old(self, *a, **k)
            r = old(self, *[_up(x) for x in a], **k)
            return _down(r) if res_bf else r

        setattr(B, name, new)

    for n in ("binary_op", "unary_op", "create_fma", "create_rsqrt", "create_erf", "create_clampf"):
        wrap(n)

    old_dot = B.create_dot

    def dot(self, a, b, d, *r):
        f8 = lambda h: h.dtype.primitive_bitwidth == 8 and h.dtype.is_floating()
        if _is_bf(a) or _is_bf(b) or f8(a) or f8(b):
            A = (
                _up(a)
                if not f8(a)
                else I.TensorHandle(convert_float(a.data, a.dtype, tl.float32, None).view(np.float32), tl.float32)
            )
            Bb = (
                _up(b)
                if not f8(b)
                else I.TensorHandle(convert_float(b.data, b.dtype, tl.float32, None).view(np.float32), tl.float32)
            )
            return I.TensorHandle(np.matmul(A.data, Bb.data) + d.data, d.dtype.scalar)
        return old_dot(self, a, b, d, *r)

    B.create_dot = dot

    old_cast = B.cast_impl

    def cast(self, src, dst_type):
        s, t = src.dtype.scalar, dst_type.scalar
        if s == t:
            return src
        if s == tl.bfloat16:
            return cast(self, _up(src), dst_type) if t != tl.float32 else _up(src)
        if t == tl.bfloat16:
            return _down(I.TensorHandle(src.data.astype(np.float32), tl.float32))
        return old_cast(self, src, dst_type)

    B.cast_impl = cast
    B.get_bf16 = lambda self, v: _down(I.TensorHandle(np.array([v], np.float32), tl.float32))
    # select/where on bf16 moves bits: leave create_select untouched (ternary_op on raw bits is right)

    old_rmw = B.create_atomic_rmw

    def rmw(self, op, ptr, val, mask, sem, scope):
        if val.dtype.scalar != tl.bfloat16:
            return old_rmw(self, op, ptr, val, mask, sem, scope)
        from triton._C.libtriton import ir

        f = {ir.ATOMIC_OP.FADD: np.add, ir.ATOMIC_OP.MAX: np.maximum, ir.ATOMIC_OP.MIN: np.minimum}[op]
        p = np.atleast_1d(ptr.data)
        v = np.broadcast_to(val.data, p.shape)
        m = np.broadcast_to(mask.data, p.shape)
        out = np.zeros(p.shape, np.uint16)
        for i in np.ndindex(p.shape):
            if not m[i]:
                continue
            a, one = np.array([p[i]], np.uint64), np.ones(1, bool)
            out[i] = I._interpreter.load(a, one, np.zeros(1, np.uint16), np.dtype(np.uint16))[0]
            new = self.binary_op(
                I.TensorHandle(out[i].reshape(1), tl.bfloat16),
                I.TensorHandle(np.array([v[i]], np.uint16), tl.bfloat16),
                f,
            )
            I._interpreter.store(a, new.data, one)
        return I.TensorHandle(out.reshape(ptr.data.shape), tl.bfloat16)

    B.create_atomic_rmw = rmw

    if not hasattr(B, "create_descriptor_reduce"):
        from triton._C.libtriton import ir

        def reduce(self, kind, desc, value, indices):
            ptrs, mask = desc.materialize_pointers(indices)
            name = str(kind).split(".")[-1].upper()
            fl = value.dtype.scalar.is_floating()
            op = {
                "ADD": ir.ATOMIC_OP.FADD if fl else ir.ATOMIC_OP.ADD,
                "MIN": ir.ATOMIC_OP.MIN,
                "MAX": ir.ATOMIC_OP.MAX,
                "AND": ir.ATOMIC_OP.AND,
                "OR": ir.ATOMIC_OP.OR,
                "XOR": ir.ATOMIC_OP.XOR,
            }[name]
            return self.create_atomic_rmw(op, ptrs, value, mask, ir.MEM_SEMANTIC.RELAXED, None)

        B.create_descriptor_reduce = reduce

    triton.runtime.driver.set_active(_FakeDriver())

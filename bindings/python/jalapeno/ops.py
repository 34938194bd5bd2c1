"""Functions of whole arrays, on the current stream: the runtime's kernel library, and elementwise kernels in the tile language.

Every function but topk takes ``out=`` (an array of the result's shape and type on the same device, which may be an operand of an
elementwise function but not overlap one otherwise) or makes one. Types and shapes are checked before anything is launched:
TypeError and ValueError name the function, the operand and what was expected. Nothing waits for the result: what the work fails
with is raised by the stream's next synchronize() or the array's .numpy(). Matrices are row-major; results are float32 unless out says
otherwise. Arithmetic is float32 whatever the operands hold; integers are exact up to 2**24.

>>> import numpy as np, jalapeno as jal
>>> a = jal.array([[1.0, 2.0], [3.0, 4.0]])
>>> jal.ops.softmax(a).numpy().sum(axis=1).tolist()
[1.0, 1.0]
"""
from __future__ import annotations

import builtins
import contextlib
import math
from typing import Any, Callable, Iterator

import numpy as np

from . import _core
from . import language as tl
from .array import Array, array, empty
from ._core import Device, Kernel
from .dtypes import DType, bfloat16, float8_e4m3, float8_e5m2, float16, float32, int32, int8
from .kernel import JitKernel

_CODES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float8_e4m3": "e4m3", "float8_e5m2": "e5m2"}


# ---- Checks ----
def _array(x: Any, what: str, *, ndim: int | tuple[int, ...] = (), dtypes: tuple[DType, ...] = ()) -> Array:
    if not isinstance(x, Array):
        raise TypeError(f"{what} is a {type(x).__name__}, expected a jalapeno.Array; jalapeno.array(x) makes one")
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if allowed and x.ndim not in allowed:
        raise ValueError(f"{what} has shape {x.shape}, expected {' or '.join(map(str, allowed))} dimensions")
    if dtypes and x.dtype not in dtypes:
        raise TypeError(f"{what} is {x.dtype.name}, expected {' or '.join(d.name for d in dtypes)}")
    if not x.dtype.computes:
        raise TypeError(f"{what} is {x.dtype.name}, which kernels do not take")
    if x.place == "host":
        raise ValueError(f"{what} lies in host memory the device does not reach; move it with .to(device)")
    return x


def _together(function: str, **arrays: Array | None) -> Device:
    given = {n: a for n, a in arrays.items() if a is not None}
    device = next(iter(given.values())).device
    for n, a in given.items():
        if a.device is not device:
            raise ValueError(f"{function}: {n} is on another device than {next(iter(given))}")
    return device


def _out(function: str, out: Array | None, shape: tuple[int, ...], dtype: DType | None, device: Device) -> Array:
    """dtype None: any."""
    if out is None:
        return empty(shape, dtype or float32, device)
    _array(out, f"{function}: out")
    if out.shape != shape:
        raise ValueError(f"{function}: out has shape {out.shape}, expected {shape}")
    if dtype is not None and out.dtype is not dtype:
        raise TypeError(f"{function}: out is {out.dtype.name}, expected {dtype.name}")
    if out.device is not device:
        raise ValueError(f"{function}: out is on another device")
    return out


def _position(function: str, position: Any, rows: int, limit: int, device: Device) -> Array:
    """Of the first row, as an array. One that lies on the device already is not looked at: a graph may change it."""
    if isinstance(position, Array):
        if position.dtype is not int32 or position.size != 1 or position.device is not device:
            raise TypeError(f"{function}: position is {position!r}, expected an int or one int32 on the same device")
        return position.reshape(1)
    if not hasattr(position, "__index__"):
        raise TypeError(f"{function}: position is {position!r}, expected an int or one int32 on the same device")
    first = position.__index__()
    if first < 0 or first + rows > limit:
        raise ValueError(f"{function}: positions {first} to {first + rows - 1}, expected 0 to {limit - 1}")
    return array([first], int32, device)


def _rows(x: Array) -> Array:
    """As a matrix: all axes but the last together."""
    return x if x.ndim == 2 else x.reshape(-1 if x.ndim > 1 else 1, x.shape[-1]) if x.size else x.reshape(0, x.shape[-1])


def _last_dense(x: Array) -> Array:
    return x if x.ndim == 0 or x.shape[-1] <= 1 or x.strides[-1] == x.itemsize else x.contiguous()


@contextlib.contextmanager
def _dense(result: Array) -> Iterator[Array]:
    """Kernels write whole rows: where the result is a view with gaps, what they write is copied into it at the end."""
    target = result if result.is_contiguous else empty(result.shape, result.dtype, result.device)
    yield target
    if target is not result:
        result.copy_from(target)


def _library(device: Device, name: str) -> Kernel:
    kernels = device.__dict__.setdefault("_library", {})
    found = kernels.get(name)
    if found is None:
        found = kernels[name] = _core.library_kernel(device, name)
    return found


def _run(device: Device, name: str, grid: Any, *args: Any) -> None:
    _core.launch(_library(device, name), grid, args)


def _cores(device: Device) -> int:
    return device.properties["cores"]


# ---- Elementwise ----
_COLUMNS = 4096


def _elementwise(name: str, body: Callable[..., tl.Tile], right: str = "") -> JitKernel:
    """A kernel over flat arrays; the grid strides over blocks. What body takes beside x: nothing, an "array" or a "number"."""
    def each(x: Any, y: Any, out: Any) -> None:
        for i in tl.range(tl.program_id(0) * _COLUMNS, out.shape[0], tl.num_programs(0) * _COLUMNS, stages=2):
            operands = [tl.load(x, i, _COLUMNS)]
            if right:
                operands.append(tl.load(y, i, _COLUMNS) if right == "array" else y)
            tl.store(out, i, body(*operands))

    def alone(x: Any, out: Any) -> None:
        each(x, None, out)
    return JitKernel(each, name) if right else JitKernel(alone, name)


def _by_rows(name: str, body: Callable[..., tl.Tile]) -> JitKernel:
    """x[m, n] with y[m or 1, n or 1]; a program takes rows, columns in steps."""
    def f(x, y, out, *, ROW, COLUMN):  # type: ignore[no-untyped-def]
        for i in tl.range(tl.program_id(0), out.shape[0], tl.num_programs(0)):
            for j in tl.range(0, out.shape[1], 2048):
                a = tl.load(x, (i, j), (1, 2048))
                b = tl.load(y, (i if not ROW else 0, j if not COLUMN else 0), (1, 1 if COLUMN else 2048))
                tl.store(out, (i, j), body(a, b))
    return JitKernel(f, name)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b, "subtract": lambda a, b: a - b, "multiply": lambda a, b: a * b, "divide": lambda a, b: a / b,
    "maximum": tl.maximum, "minimum": tl.minimum, "less": lambda a, b: a < b, "less_equal": lambda a, b: a <= b,
    "equal": lambda a, b: a == b,
}
_UNARY: dict[str, Callable[[Any], Any]] = {
    "negative": lambda a: -a, "convert": lambda a: a, "exp": tl.exp, "log": tl.log, "sqrt": tl.sqrt, "rsqrt": tl.rsqrt,
    "tanh": tl.tanh, "sigmoid": tl.sigmoid, "silu": tl.silu, "gelu": tl.gelu, "relu": tl.relu, "sin": tl.sin, "cos": tl.cos,
    "floor": tl.floor, "abs": tl.abs,
}
_kernels: dict[str, JitKernel] = {}


def _kernel(name: str, make: Callable[[], JitKernel]) -> JitKernel:
    found = _kernels.get(name)
    if found is None:
        found = _kernels[name] = make()
    return found


def _blocks(n: int, device: Device) -> int:
    return builtins.max(1, builtins.min(-(-n // _COLUMNS), _cores(device)))


def _unary(name: str, x: Any, out: Array | None) -> Array:
    _array(x, f"{name}: x")
    result = _out(name, out, x.shape, None if out is not None else float32, x.device)
    if x.size:
        with _dense(result) as target:
            _kernel(name, lambda: _elementwise(name, _UNARY[name]))[_blocks(x.size, x.device)](
                x.contiguous().reshape(x.size), target.reshape(x.size))
    return result


def _binary(name: str, a: Any, b: Any, out: Array | None) -> Array:
    body = _BINARY[name]
    if not isinstance(a, Array) and not isinstance(b, Array):
        raise TypeError(f"{name} of {type(a).__name__} and {type(b).__name__}, expected at least one jalapeno.Array")
    for left, right, swap in ((a, b, False), (b, a, True)):
        if isinstance(right, (int, float, np.bool_, np.integer, np.floating)):
            return _binary_number(name, left, float(right), swap, out)
    x = a if isinstance(a, Array) else _converted(name, "a", a, b.device)
    y = b if isinstance(b, Array) else _converted(name, "b", b, x.device)
    _array(x, f"{name}: a"), _array(y, f"{name}: b")
    device = _together(name, a=x, b=y)
    try:
        shape = np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        raise ValueError(f"{name}: shapes {x.shape} and {y.shape} do not broadcast") from None
    result = _out(name, out, shape, None if out is not None else float32, device)
    n = result.size
    if n:
        with _dense(result) as target:
            if x.shape == y.shape:
                _kernel(name, lambda: _elementwise(name, body, "array"))[_blocks(n, device)](
                    x.contiguous().reshape(n), y.contiguous().reshape(n), target.reshape(n))
            else:
                _broadcast(name, body, x, y, target)
    return result


def _binary_number(name: str, x: Array, number: float, swap: bool, out: Array | None) -> Array:
    """x with a number, or, swapped, the number with x."""
    _array(x, f"{name}: operand")
    body = _BINARY[name]
    result = _out(name, out, x.shape, None if out is not None else float32, x.device)
    if x.size:
        made = _kernel(f"{name}_number{'_r' * swap}", lambda: _elementwise(
            f"{name}_number", (lambda t, s: body(s, t)) if swap else body, "number"))
        with _dense(result) as target:
            made[_blocks(x.size, x.device)](x.contiguous().reshape(x.size), number, target.reshape(x.size))
    return result


def _converted(name: str, what: str, value: Any, device: Device) -> Array:
    """A NumPy array or a list, on the device."""
    try:
        return array(value, device=device)
    except (TypeError, ValueError) as e:
        raise type(e)(f"{name}: {what} is a {type(value).__name__}: {e}") from None


def _broadcast(name: str, body: Callable[[Any, Any], Any], x: Array, y: Array, target: Array) -> None:
    shape = target.shape
    swap = x.shape != shape
    full, other = (y, x) if swap else (x, y)
    matrix = (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)
    leading, last = math.prod(other.shape[:-1]) if other.ndim else 1, other.shape[-1] if other.ndim else 1
    if full.shape != shape or leading not in (1, matrix[0]):
        raise ValueError(f"{name}: broadcasting {x.shape} with {y.shape} is not supported; one operand must have the result's "
                         "shape, and the other all of its leading axes or none")
    made = _kernel(f"{name}_rows{'_r' * swap}", lambda: _by_rows(f"{name}_rows", (lambda a, b: body(b, a)) if swap else body))
    made[builtins.max(1, builtins.min(matrix[0], _cores(target.device)))](
        full.contiguous().reshape(matrix), other.contiguous().reshape(leading, last), target.reshape(matrix),
        ROW=leading == 1, COLUMN=last == 1)


def add(a: Any, b: Any, out: Array | None = None) -> Array:
    """a + b; arrays of one shape, an array and a row or column of it, or an array and a number."""
    return _binary("add", a, b, out)


def subtract(a: Any, b: Any, out: Array | None = None) -> Array:
    """a - b."""
    return _binary("subtract", a, b, out)


def multiply(a: Any, b: Any, out: Array | None = None) -> Array:
    """a * b, element by element."""
    return _binary("multiply", a, b, out)


def divide(a: Any, b: Any, out: Array | None = None) -> Array:
    """a / b."""
    return _binary("divide", a, b, out)


def maximum(a: Any, b: Any, out: Array | None = None) -> Array:
    """The larger of the two."""
    return _binary("maximum", a, b, out)


def minimum(a: Any, b: Any, out: Array | None = None) -> Array:
    """The smaller of the two."""
    return _binary("minimum", a, b, out)


def less(a: Any, b: Any, out: Array | None = None) -> Array:
    """1 where a < b, else 0."""
    return _binary("less", a, b, out)


def less_equal(a: Any, b: Any, out: Array | None = None) -> Array:
    """1 where a <= b, else 0."""
    return _binary("less_equal", a, b, out)


def equal(a: Any, b: Any, out: Array | None = None) -> Array:
    """1 where a == b, else 0."""
    return _binary("equal", a, b, out)


def negative(x: Array, out: Array | None = None) -> Array:
    """-x."""
    return _unary("negative", x, out)


def convert(x: Array, out: Array) -> Array:
    """x in out's type, rounded to nearest even; what Array.astype does."""
    return _unary("convert", x, out)


def exp(x: Array, out: Array | None = None) -> Array:
    """e**x, within 2 ulp."""
    return _unary("exp", x, out)


def log(x: Array, out: Array | None = None) -> Array:
    """The natural logarithm."""
    return _unary("log", x, out)


def sqrt(x: Array, out: Array | None = None) -> Array:
    """The square root."""
    return _unary("sqrt", x, out)


def rsqrt(x: Array, out: Array | None = None) -> Array:
    """1 / sqrt(x)."""
    return _unary("rsqrt", x, out)


def tanh(x: Array, out: Array | None = None) -> Array:
    """The hyperbolic tangent."""
    return _unary("tanh", x, out)


def sigmoid(x: Array, out: Array | None = None) -> Array:
    """1 / (1 + exp(-x))."""
    return _unary("sigmoid", x, out)


def silu(x: Array, out: Array | None = None) -> Array:
    """x * sigmoid(x)."""
    return _unary("silu", x, out)


def gelu(x: Array, out: Array | None = None) -> Array:
    """GELU, the tanh form."""
    return _unary("gelu", x, out)


def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0)."""
    return _unary("relu", x, out)


def sin(x: Array, out: Array | None = None) -> Array:
    """The sine."""
    return _unary("sin", x, out)


def cos(x: Array, out: Array | None = None) -> Array:
    """The cosine."""
    return _unary("cos", x, out)


def floor(x: Array, out: Array | None = None) -> Array:
    """Rounded down."""
    return _unary("floor", x, out)


def abs(x: Array, out: Array | None = None) -> Array:  # noqa: A001
    """The absolute value."""
    return _unary("abs", x, out)


# ---- Matrices ----
def linear(a: Array, w: Array, out: Array | None = None, *, accumulate: bool = False) -> Array:
    """a[m, k] @ w[n, k].T: weights as files store them. a is converted to w's type on its way in (float types); int8 by int8
    gives float32 of the exact integers. accumulate: adds to out."""
    _array(a, "linear: a", ndim=2), _array(w, "linear: w", ndim=2)
    if a.shape[1] != w.shape[1]:
        raise ValueError(f"linear: a has shape {a.shape} and w {w.shape}, expected [m, k] and [n, k] with one k")
    device = _together("linear", a=a, w=w)
    m, n = a.shape[0], w.shape[0]
    if accumulate and out is None:
        raise ValueError("linear: accumulate=True needs out")
    result = _out("linear", out, (m, n), float32, device)
    if not result.size:
        return result
    if not a.shape[1]:
        if not accumulate:
            result.fill(0)
        return result
    a, w = _last_dense(a), _last_dense(w)
    target = result if result.strides[-1] == result.itemsize or n == 1 else result.copy()
    if w.dtype is int8:
        if a.dtype is not int8 or accumulate:
            raise TypeError(f"linear: a is {a.dtype.name} and w int8{' with accumulate' * accumulate}, expected int8 for both "
                            "and no accumulate")
        _run(device, "matmul_i8", _pieces(m, n, device), a, w, _ones(m, device), _ones(n, device), target)
    else:
        if w.dtype.name not in _CODES:
            raise TypeError(f"linear: w is {w.dtype.name}, expected {', '.join(_CODES)} or int8")
        if a.dtype is int8 or a.dtype is int32:
            raise TypeError(f"linear: a is {a.dtype.name} and w {w.dtype.name}, expected a float type for a")
        kind = "matvec" if m <= 16 else "matmul"
        _run(device, f"{kind}_{_CODES[w.dtype.name]}{'_add' * accumulate}",
             (builtins.max(1, -(-n // 128)), 1) if m <= 16 else _pieces(m, n, device), a, w, target)
    if target is not result:
        result.copy_from(target)
    return result


def _pieces(m: int, n: int, device: Device) -> tuple[int, int]:
    return builtins.max(1, -(-n // 256)), builtins.max(1, -(-m // 256))


def _ones(n: int, device: Device) -> Array:
    kept = device.__dict__.get("_ones")
    if kept is None or kept.shape != (n,):  # one size at a time
        from .array import ones
        kept = device.__dict__["_ones"] = ones(n, float32, device)
    return kept


def _transposed_kernel() -> JitKernel:
    def transpose(x, out):  # type: ignore[no-untyped-def]
        i, j = tl.program_id(0) * 256, tl.program_id(1) * 256
        tl.store(out, (j, i), tl.load(x, (i, j), (256, 256)).T)
    return JitKernel(transpose)


def transpose(x: Array, out: Array | None = None) -> Array:
    """x.T of a matrix as a dense array (x.T alone is a view)."""
    _array(x, "transpose: x", ndim=2)
    result = _out("transpose", out, x.shape[::-1], x.dtype, x.device)
    if not result.size:
        return result
    target = result if result.strides[-1] == result.itemsize else empty(result.shape, result.dtype, x.device)
    _kernel("transpose", _transposed_kernel)[-(-x.shape[0] // 256), -(-x.shape[1] // 256)](_last_dense(x), target)
    if target is not result:
        result.copy_from(target)
    return result


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """a[m, k] @ b[k, n] in float32. b as a transposed view (w.T of w[n, k]) is read in place; a dense b is transposed first.
    Vectors count as a row on the left and as a column on the right, as NumPy has it."""
    _array(a, "matmul: a", ndim=(1, 2)), _array(b, "matmul: b", ndim=(1, 2))
    if a.shape[-1] != b.shape[0]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape} do not fit: {a.shape[-1]} columns and {b.shape[0]} rows")
    left = a[None] if a.ndim == 1 else a
    right = b[None] if b.ndim == 1 else b.T
    shape = a.shape[:-1] + b.shape[1:]
    device = _together("matmul", a=a, b=b)
    result = _out("matmul", out, shape, float32, device)
    if right.size and right.shape[1] > 1 and right.strides[1] != right.itemsize:
        right = transpose(b) if b.ndim == 2 and b.strides[1] == b.itemsize else right.contiguous()
    if result.is_contiguous:
        linear(left, right, result.reshape(left.shape[0], right.shape[0]))
    else:
        result.copy_from(linear(left, right).reshape(*shape))
    return result


# ---- Rows ----
_NARROW = 8192  # columns of a row that is worked on whole


def _softmax_kernel() -> JitKernel:
    def softmax(x, out, *, ROWS, COLUMNS):  # type: ignore[no-untyped-def]
        for i in tl.range(tl.program_id(0) * ROWS, out.shape[0], tl.num_programs(0) * ROWS, stages=2):
            e = tl.load(x, (i, 0), (ROWS, COLUMNS), fill=-math.inf)
            e = tl.exp(e - tl.max(e, axis=1))
            tl.store(out, (i, 0), e / tl.sum(e, axis=1))
    return JitKernel(softmax)


def _reduction(name: str, identity: float, reduce: Callable[..., Any], join: Callable[..., Any]) -> JitKernel:
    """Rows to one value each, in steps of some columns."""
    def f(x, factor, out, *, ROWS, COLUMNS):  # type: ignore[no-untyped-def]
        for i in tl.range(tl.program_id(0) * ROWS, out.shape[0], tl.num_programs(0) * ROWS):
            total = tl.full((ROWS, 1), identity)
            for j in tl.range(0, x.shape[1], COLUMNS, stages=2):
                total = join(total, reduce(tl.load(x, (i, j), (ROWS, COLUMNS), fill=identity), axis=1))
            tl.store(out, (i, 0), total * factor)
    return JitKernel(f, name)


_REDUCTIONS: dict[str, tuple[float, Callable[..., Any], Callable[..., Any]]] = {
    "sum": (0.0, tl.sum, lambda a, b: a + b), "max": (-math.inf, tl.max, tl.maximum), "min": (math.inf, tl.min, tl.minimum),
}


def _block(columns: int, most: int) -> tuple[int, int]:
    """(rows, columns) of a tile for rows of so many columns, of which it takes at most so many at a time."""
    wide = builtins.max(16, builtins.min(most, 1 << (columns - 1).bit_length()))
    return builtins.max(1, builtins.min(64, 65536 // wide)), wide


def _reduce(function: str, kind: str, x: Any, axis: int | None, keepdims: bool, out: Array | None, factor: float = 1.0) -> Array:
    _array(x, f"{function}: x", ndim=(1, 2, 3, 4))
    if axis is not None and not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{function}: axis {axis} of shape {x.shape}")
    last = axis is None or axis % x.ndim == x.ndim - 1
    if not last and x.ndim != 2:
        raise ValueError(f"{function}: axis {axis} of shape {x.shape}, expected the last axis, None, or either of a matrix")
    source = x if last else transpose(_last_dense(x))
    if axis is None:
        matrix = source.reshape(1, x.size)
        shape: tuple[int, ...] = (1,) * x.ndim if keepdims else ()
    else:
        matrix = _rows(_last_dense(source))
        kept = list(x.shape)
        kept[axis] = 1
        shape = tuple(kept) if keepdims else tuple(kept[:axis % x.ndim] + kept[axis % x.ndim + 1:])
    if not matrix.shape[1] and kind != "sum":
        raise ValueError(f"{function}: shape {x.shape} has nothing along the axis")
    result = _out(function, out, shape, None if out is not None else float32, x.device)
    if result.size:
        rows, columns = _block(builtins.max(1, matrix.shape[1]), 4096)
        programs = builtins.min(-(-matrix.shape[0] // rows), _cores(x.device))
        with _dense(result) as target:
            _kernel(kind, lambda: _reduction(kind, *_REDUCTIONS[kind]))[programs](
                matrix, factor, target.reshape(matrix.shape[0], 1), ROWS=rows, COLUMNS=columns)
    return result


def sum(x: Array, axis: int | None = None, keepdims: bool = False, out: Array | None = None) -> Array:  # noqa: A001
    """Over the last axis, either axis of a matrix, or all (None). float32 sums, in an order of the device's."""
    return _reduce("sum", "sum", x, axis, keepdims, out)


def mean(x: Array, axis: int | None = None, keepdims: bool = False, out: Array | None = None) -> Array:
    """The sum by the number of elements."""
    _array(x, "mean: x", ndim=(1, 2, 3, 4))
    n = x.size if axis is None else x.shape[axis] if -x.ndim <= axis < x.ndim else 1
    if not n:
        raise ValueError(f"mean: shape {x.shape} has nothing along the axis")
    return _reduce("mean", "sum", x, axis, keepdims, out, 1.0 / n)


def max(x: Array, axis: int | None = None, keepdims: bool = False, out: Array | None = None) -> Array:  # noqa: A001
    """The largest, over the last axis, either axis of a matrix, or all (None)."""
    return _reduce("max", "max", x, axis, keepdims, out)


def min(x: Array, axis: int | None = None, keepdims: bool = False, out: Array | None = None) -> Array:  # noqa: A001
    """The smallest, over the last axis, either axis of a matrix, or all (None)."""
    return _reduce("min", "min", x, axis, keepdims, out)


def softmax(x: Array, out: Array | None = None) -> Array:
    """exp(x - max) / sum along the last axis. float32."""
    _array(x, "softmax: x", ndim=(1, 2, 3, 4), dtypes=(float32,))
    result = _out("softmax", out, x.shape, float32, x.device)
    if not result.size or x.shape[-1] > _NARROW:
        return _over_rows("softmax", result, [x], lambda rows, target: (rows[0], target))
    rows, columns = _block(x.shape[-1], _NARROW)
    with _dense(result) as target:
        matrix = _rows(target)
        _kernel("softmax", _softmax_kernel)[builtins.min(-(-matrix.shape[0] // rows), _cores(x.device))](
            _rows(_last_dense(x) if x.ndim <= 2 else x.contiguous()), matrix, ROWS=rows, COLUMNS=columns)
    return result


def rmsnorm(x: Array, weight: Array, eps: float = 1e-5, out: Array | None = None) -> Array:
    """x / sqrt(mean(x**2) + eps) * weight along the last axis (at most 16384). x and weight are float32, out of any type."""
    _array(x, "rmsnorm: x", ndim=(1, 2, 3, 4), dtypes=(float32,)), _array(weight, "rmsnorm: weight", ndim=1, dtypes=(float32,))
    if weight.shape[0] != x.shape[-1]:
        raise ValueError(f"rmsnorm: x has shape {x.shape} and weight {weight.shape}, expected ({x.shape[-1]},)")
    if x.shape[-1] > 16384:
        raise ValueError(f"rmsnorm: rows of {x.shape[-1]}, expected at most 16384")
    _together("rmsnorm", x=x, weight=weight)
    result = _out("rmsnorm", out, x.shape, None if out is not None else float32, x.device)
    return _over_rows("rmsnorm", result, [x], lambda rows, target: (rows[0], _last_dense(weight), target, float(eps)))


def swiglu(gate: Array, up: Array, out: Array | None = None) -> Array:
    """silu(gate) * up. float32 in, out of any type."""
    _array(gate, "swiglu: gate", ndim=(1, 2, 3, 4), dtypes=(float32,)), _array(up, "swiglu: up", dtypes=(float32,))
    if gate.shape != up.shape:
        raise ValueError(f"swiglu: gate has shape {gate.shape} and up {up.shape}, expected one shape")
    _together("swiglu", gate=gate, up=up)
    result = _out("swiglu", out, gate.shape, None if out is not None else float32, gate.device)
    return _over_rows("swiglu", result, [gate, up], lambda rows, target: (*rows, target), columns=8192)


def _over_rows(name: str, result: Array, inputs: list[Array], arguments: Callable[[list[Array], Array], tuple],
               columns: int = 0) -> Array:
    if not result.size:
        return result
    with _dense(result) as target:
        matrix = _rows(target)
        rows = builtins.min(matrix.shape[0], _cores(result.device))
        grid = (builtins.max(1, -(-matrix.shape[1] // columns)), rows) if columns else rows
        _run(result.device, name, grid, *arguments([_rows(x.contiguous()) for x in inputs], matrix))
    return result


def argmax(x: Array, out: Array | None = None) -> Array:
    """The index of the largest of each row (the first of equals), int32."""
    _array(x, "argmax: x", ndim=(1, 2), dtypes=(float32,))
    if not x.shape[-1]:
        raise ValueError(f"argmax: x has shape {x.shape}, expected at least one column")
    rows = _rows(_last_dense(x))
    result = _out("argmax", out, (rows.shape[0],) if x.ndim == 2 else (), int32, x.device)
    if result.size:
        _run(x.device, "argmax", rows.shape[0], rows, result.reshape(rows.shape[0]))
    return result


def topk(x: Array, k: int) -> tuple[Array, Array]:
    """(values, int32 indices) of the k (at most 1024) largest of each row, largest first."""
    _array(x, "topk: x", ndim=(1, 2), dtypes=(float32,))
    if not isinstance(k, int) or not 1 <= k <= builtins.min(1024, x.shape[-1]):
        raise ValueError(f"topk: k is {k!r}, expected 1 to {builtins.min(1024, x.shape[-1])}")
    rows = _rows(_last_dense(x))
    values, indices = empty((rows.shape[0], k), float32, x.device), empty((rows.shape[0], k), int32, x.device)
    if rows.shape[0]:
        _run(x.device, f"topk_k{k}", rows.shape[0], rows, values, indices)
    return (values, indices) if x.ndim == 2 else (values[0], indices[0])


def embedding(table: Array, tokens: Array, out: Array | None = None) -> Array:
    """Rows of table[rows, width] named by int32 tokens[t]; an unknown token gives zeros. float32."""
    _array(table, "embedding: table", ndim=2), _array(tokens, "embedding: tokens", ndim=1, dtypes=(int32,))
    device = _together("embedding", table=table, tokens=tokens)
    result = _out("embedding", out, (tokens.shape[0], table.shape[1]), float32, device)
    if result.size:
        _run(device, "embed", tokens.shape[0], _last_dense(table), tokens.contiguous(), result)
    return result


def rope(x: Array, cosine: Array, sine: Array, position: int = 0, *, head: int, interleaved: bool = False,
         out: Array | None = None) -> Array:
    """Rotary positions of x[t, heads * head] float32, whose first row is at `position`; cosine and sine are float32
    [context, rotated / 2]."""
    _array(x, "rope: x", ndim=2, dtypes=(float32,))
    _array(cosine, "rope: cosine", ndim=2, dtypes=(float32,)), _array(sine, "rope: sine", ndim=2, dtypes=(float32,))
    rotated = 2 * cosine.shape[1]
    if sine.shape != cosine.shape or not 0 < rotated <= head or x.shape[1] % head:
        raise ValueError(f"rope: x has shape {x.shape}, heads of {head}, cosine {cosine.shape}, sine {sine.shape}; expected "
                         "columns in whole heads and tables of one shape with at most head / 2 columns")
    device = _together("rope", x=x, cosine=cosine, sine=sine)
    result = _out("rope", out, x.shape, float32, device)
    if result.size:
        _run(device, f"rope_{'interleaved' if interleaved else 'halves'}_d{head}_r{rotated}",
             builtins.min(x.shape[0], _cores(device)), _last_dense(x),
             _last_dense(cosine), _last_dense(sine), _position("rope", position, x.shape[0], cosine.shape[0], device), result)
    return result


def attention(q: Array, k: Array, v: Array, *, position: int = 0, scale: float | None = None, out: Array | None = None) -> Array:
    """Causal attention: q[heads, t, d] float32 at positions position .. position + t - 1; k and v [slots, kv_heads * d] (float32,
    bfloat16, float16), of which the first position + t are read; heads / kv_heads of them share keys. scale: 1 / sqrt(d)."""
    _array(q, "attention: q", ndim=3, dtypes=(float32,))
    for what, x in (("k", k), ("v", v)):
        _array(x, f"attention: {what}", ndim=2, dtypes=(float32, bfloat16, float16))
    heads, t, d = q.shape
    if k.shape != v.shape or k.dtype is not v.dtype:
        raise ValueError(f"attention: k is {k.dtype.name} {k.shape} and v {v.dtype.name} {v.shape}, expected one type and shape")
    if not d or k.shape[1] % d or not k.shape[1] or heads % (k.shape[1] // d):
        raise ValueError(f"attention: q has shape {q.shape} and k {k.shape}, expected k of kv_heads * {d} columns, heads a "
                         "multiple of kv_heads")
    device = _together("attention", q=q, k=k, v=v)
    result = _out("attention", out, q.shape, None if out is not None else float32, device)
    if result.size:
        group = heads // (k.shape[1] // d)
        rows = 128 if heads * -(-t // 128) >= _cores(device) else 64  # of a program; many use each block of keys longer
        _run(device, f"attention_causal_{_CODES[k.dtype.name]}_d{d}", (heads, -(-t // rows)), _last_dense(q), _last_dense(k),
             _last_dense(v),
             _position("attention", position, t, k.shape[0], device), result, group, float(1 / math.sqrt(d) if scale is None else scale))
    return result


__all__ = ["abs", "add", "argmax", "attention", "convert", "cos", "divide", "embedding", "equal", "exp", "floor", "gelu", "less",
           "less_equal", "linear", "log", "matmul", "max", "maximum", "mean", "min", "minimum", "multiply", "negative", "relu", "rmsnorm", "rope",
           "rsqrt", "sigmoid", "silu", "sin", "softmax", "sqrt", "subtract", "sum", "swiglu", "tanh", "topk", "transpose"]

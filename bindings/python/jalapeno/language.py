"""The tile language: what stands inside a function decorated with @jalapeno.kernel.

The function runs once, to record instructions; what it computes happens later on the chip, once for each point of the grid.
Tensors are the kernel's array arguments, tiles are two-dimensional values in a core's scratchpad (a 1-D tile is one row),
and scalars are 64-bit integers or floats the chip computes while it runs. Python numbers, Python loops and Python
conditions are evaluated while recording; what depends on a scalar uses range() and when() of this module.

    @jal.kernel
    def scale(x, y, factor, *, BLOCK=4096):
        i = tl.program_id(0) * BLOCK
        t = tl.load(x, i, BLOCK)          # outside the array reads as 0
        tl.store(y, i, t * factor)        # ... and is not written

Arithmetic of tiles is float32 whatever they hold, exact for integers up to 2**24; .to(dtype) rounds to nearest even.
As in NumPy, "x += y" changes a tile in place and "x = x + y" makes a new one; both may be used in a loop. Loops and conditions of
the chip carry what local names hold (also in lists, tuples, dicts and attributes) by value: after "x = y" in a loop, the next
iteration's "x += 1" leaves y alone.

This module is what users see: the functions, and the classes of values under their names. How values compute is in _tiles and
_scalars, loops and conditions in _control, memory and the place in the user's file in _recording.
"""
from __future__ import annotations

import builtins
import math
import numbers
from typing import Any, Sequence

from . import _hints
from ._control import range, when  # noqa: A004 - they take the builtins' places, as some functions below do
from ._hints import _instead
from ._recording import _active, _tracer
from ._scalars import Condition, Scalar, Tensor, _OPPOSITE, _int, _kind, _plain, _plain_float, _scalar, _two, to_float
from ._tiles import (Dot, Tile, Transposed, _binary, _broadcast, _convert, _duplicate, _expand, _kernel_dtype, _new, _number, _reduce, _shape,
                     _spm, _staged, _tile, _unary, copy, dot, slice_tile)
from .dtypes import DType, bfloat16, float16, float32, int8, int32

__all__ = ["DType", "bfloat16", "float16", "float32", "int8", "int32", "Condition", "Scalar", "scalar", "to_float", "to_int",
           "program_id", "num_programs", "cdiv", "range", "when", "device_assert", "static_assert", "Tensor", "Tile",
           "Transposed", "Dot", "exp", "log", "sqrt", "rsqrt", "reciprocal", "tanh", "sigmoid", "silu", "gelu", "relu", "sin",
           "cos", "floor", "abs", "maximum", "minimum", "where", "fma", "zeros", "full", "arange", "iota", "copy", "load",
           "store", "gather", "scatter", "slice_tile", "item", "dot", "drain", "sum", "max", "min", "sum_squares", "argmax",
           "cumsum", "top_k", "mask", "SoftmaxState", "softmax_step", "softmax", "rmsnorm", "rope", "glu", "uniform"]
_hints.known.extend(__all__)

Shape = Sequence[int]


# ---- Scalars ----
def scalar(value: int | float) -> Scalar:
    """A Python number as a value of the chip, for what changes in a loop."""
    return _duplicate(value) if isinstance(value, Scalar) else _scalar(value)


def to_int(x: Any) -> Scalar:
    """A float scalar as an integer, toward zero."""
    s = _scalar(x)
    return s if s.kind == "int" else Scalar(s.tracer, s.tracer.mark().scalar_op("f2i", s.reg, 0), "int")


def program_id(axis: int = 0) -> Scalar:
    """This program's place in the grid."""
    return _special("pid", axis)


def num_programs(axis: int = 0) -> Scalar:
    """The grid's extent."""
    return _special("grid", axis)


def _special(what: str, axis: int) -> Scalar:
    t = _tracer()
    if _plain(axis, "the axis of the grid") not in (0, 1, 2):
        raise t.error(f"axis {axis} of the grid, expected 0, 1 or 2")
    return Scalar(t, t.mark().special(f"{what}_{'xyz'[axis]}"), "int")


def cdiv(a: Any, b: Any) -> Any:
    """a / b rounded up, of Python ints or scalars."""
    if isinstance(a, numbers.Integral) and isinstance(b, numbers.Integral):
        return -(-int(a) // int(b))
    return _two(a, b, "cdiv", "tl.cdiv")


# ---- Control ----
def device_assert(condition: Condition, code: int = 1) -> None:
    """Ends the launch with KernelError (TRAP code) where the condition does not hold."""
    t = _tracer()
    if not isinstance(condition, Condition):
        raise t.error(f"device_assert of {_kind(condition)}, expected a comparison of scalars such as i < n")
    if not 0 <= _plain(code, "the code of device_assert") < 2**32:
        raise t.error(f"code {code} of device_assert, expected 0 to 2**32 - 1")
    b = t.mark()
    b.begin_when(_scalar(condition.a).reg, _OPPOSITE[condition.op], _scalar(condition.b).reg)
    b.trap(code)
    b.end_block()


def static_assert(condition: bool, message: str = "") -> None:
    """Refuses to build the kernel where a condition of Python numbers does not hold."""
    if not condition:
        raise _tracer().error(f"static_assert failed{': ' + message if message else ''}")


# ---- Elementwise ----
def exp(x: Tile) -> Tile:
    """e**x, within 2 ulp."""
    return _unary("exp", x)


def log(x: Tile) -> Tile:
    """The natural logarithm."""
    return _unary("log", x)


def sqrt(x: Tile) -> Tile:
    """The square root."""
    return _unary("sqrt", x)


def rsqrt(x: Tile) -> Tile:
    """1 / sqrt(x)."""
    return _unary("rsqrt", x)


def reciprocal(x: Tile) -> Tile:
    """1 / x."""
    return _unary("rcp", x)


def tanh(x: Tile) -> Tile:
    """The hyperbolic tangent."""
    return _unary("tanh", x)


def sigmoid(x: Tile) -> Tile:
    """1 / (1 + exp(-x))."""
    return _unary("sigmoid", x)


def silu(x: Tile) -> Tile:
    """x * sigmoid(x); on a product it costs nothing of its own."""
    return _unary("silu", x)


def gelu(x: Tile) -> Tile:
    """GELU, the tanh form; on a product it costs nothing of its own."""
    return _unary("gelu", x)


def relu(x: Tile) -> Tile:
    """max(x, 0); on a product it costs nothing of its own."""
    return _unary("relu", x)


def sin(x: Tile) -> Tile:
    """The sine."""
    return _unary("sin", x)


def cos(x: Tile) -> Tile:
    """The cosine."""
    return _unary("cos", x)


def floor(x: Tile) -> Tile:
    """Rounded down."""
    return _unary("floor", x)


def abs(x: Tile) -> Tile:  # noqa: A001
    """The absolute value."""
    return _unary("abs", x)


def maximum(a: Any, b: Any) -> Any:
    """The larger, element by element; also of integer scalars."""
    return _binary("max", a, b) if isinstance(a, Tile) or isinstance(b, Tile) else _of_scalars(a, b, "max")


def minimum(a: Any, b: Any) -> Any:
    """The smaller, element by element; also of integer scalars."""
    return _binary("min", a, b) if isinstance(a, Tile) or isinstance(b, Tile) else _of_scalars(a, b, "min")


def _of_scalars(a: Any, b: Any, op: str) -> Any:
    if isinstance(a, numbers.Real) and isinstance(b, numbers.Real):
        return builtins.max(a, b) if op == "max" else builtins.min(a, b)
    return _two(a, b, op, "tl.maximum" if op == "max" else "tl.minimum")


def where(condition: Tile, a: Any, b: Any) -> Tile:
    """a where the tile `condition` is not 0, else b; tiles or numbers, broadcast."""
    t = _tracer()
    if isinstance(condition, Condition):
        raise t.error("tl.where of a comparison of scalars; use \"with tl.when(...):\", or compare tiles")
    parts = [_tile(condition, "the condition of tl.where")]
    parts += [_tile(x) for x in (a, b) if isinstance(x, Tile)]
    rows, columns, ndim = _broadcast("tl.where", *parts)

    def whole(x: Any) -> Tile:
        if isinstance(x, Tile):
            return _expand(_tile(x), rows, columns)
        out = _new(rows, columns, float32, ndim)
        _fill(out, x)
        return out

    c, x, y = whole(parts[0]), whole(a), whole(b)
    out = _new(rows, columns, float32, ndim)
    t.mark().ternary("select", out.handle, c.handle, x.handle, y.handle)
    return out


def fma(a: Tile, b: Tile, c: Tile) -> Tile:
    """a * b + c of tiles of one shape."""
    x, y, z = _tile(a), _tile(b), _tile(c)
    rows, columns, ndim = _broadcast("tl.fma", x, y, z)
    x, y, z = (_expand(k, rows, columns) for k in (x, y, z))
    out = _new(rows, columns, float32, ndim)
    x.tracer.mark().ternary("fma", out.handle, x.handle, y.handle, z.handle)
    return out


# ---- Making, loading, storing ----
def zeros(shape: Any, dtype: Any = float32, *, space: str = "auto") -> Tile:
    """A tile of zeros. space: "spm" (scratchpad), "acc" (accumulators of the matrix engine), "auto": accumulators when a product
    is added to it."""
    t = _tracer()
    rows, columns, ndim = _shape(shape)
    d = _kernel_dtype(dtype)
    if space not in ("auto", "spm", "acc"):
        raise t.error(f"space {space!r}, expected auto, spm or acc")
    ordinal = t.zeros if space == "auto" else -1
    t.zeros += space == "auto"
    if space == "acc" or ("acc", ordinal) in t.known:
        if d not in (float32, int32):
            raise t.error(f"accumulators of {d.name}, expected float32 or int32")
        out = _new(rows, columns, d, 2, "acc", ordinal)
        t.mark().zero(out.handle)
        return out
    out = _new(rows, columns, d, ndim, "spm", ordinal)
    t.mark().fill(out.handle, 0.0)
    return out


def full(shape: Any, value: Any, dtype: Any = float32) -> Tile:
    """A tile of one number or scalar."""
    rows, columns, ndim = _shape(shape)
    out = _new(rows, columns, _kernel_dtype(dtype), ndim)
    _fill(out, value)
    return out


def _fill(out: Tile, value: Any) -> None:
    b = out.tracer.mark()
    if isinstance(value, numbers.Real):
        b.fill(out.handle, float(value))
        return
    number = _number(value)
    if number is None:
        raise out.tracer.error(f"{value!r} where a number or a scalar is expected; operators broadcast tiles")
    b.fill(out.handle, -0.0)
    b.binary("add", out.handle, out.handle, number.reg, False)


def arange(columns: int, start: Any = 0, dtype: Any = int32) -> Tile:
    """start, start + 1, ... in one row. start may be a scalar."""
    return iota(columns, start, 0, 1, dtype)


def iota(shape: Any, start: Any = 0, row_step: int = 0, column_step: int = 1, dtype: Any = int32) -> Tile:
    """start + row * row_step + column * column_step."""
    rows, columns, ndim = _shape(shape)
    steps = _plain(row_step, "row_step"), _plain(column_step, "column_step")
    out = _new(rows, columns, _kernel_dtype(dtype), ndim)
    out.tracer.mark().iota(out.handle, _int(start, "start"), *steps)
    return out


def _coordinates(x: Tensor, at: Any, what: str) -> list[Any]:
    t = _tracer()
    if not isinstance(x, Tensor):
        raise t.error(f"{what} {_kind(x)}, expected an array argument of the kernel")
    given = list(at) if isinstance(at, (tuple, list)) else [at]
    if len(given) != x.ndim:
        raise t.error(f"{what} {x.name} with {len(given)} coordinates, it has {x.ndim} dimensions")
    return [_int(c, "a coordinate") for c in given]


def load(x: Tensor, at: Any, shape: Any, fill: float = 0.0, *, dtype: Any = None) -> Tile:
    """The tile of this shape whose first element is at the coordinates `at` (one for each dimension; a tile's rows are the last
    but one). Outside the array it reads as `fill`. dtype: converted on its way in. In a loop with stages it is prefetched."""
    t = _tracer()
    where_ = _coordinates(x, at, "tl.load of")
    rows, columns, ndim = _shape(shape)
    if rows > 1 and x.ndim == 1:
        raise t.error(f"tl.load of {rows} rows from {x.name}, which has 1 dimension")
    d = x.dtype if dtype is None else _kernel_dtype(dtype)
    _plain_float(fill, "fill")
    out = _loaded(rows, columns, d, ndim)
    t.mark().load(out.handle, x.handle, where_, float(fill))
    return out


def _loaded(rows: int, columns: int, d: DType, ndim: int) -> Tile:
    return _staged(rows, columns, d, ndim) if _tracer().stages > 1 else _new(rows, columns, d, ndim)


def store(x: Tensor, at: Any, value: Any, *, add: bool = False) -> None:
    """Writes a tile to the coordinates `at`, converted to the array's type; what lies outside is not written. add: adds to what is
    there (not atomic between programs)."""
    t = _tracer()
    where_ = _coordinates(x, at, "tl.store to")
    tile = _spm(value) if isinstance(value, Tile) else _tile(value, "the value of tl.store")
    if tile.rows > 1 and x.ndim == 1:
        raise t.error(f"tl.store of a tile of shape {tile.shape} to {x.name}, which has 1 dimension")
    if t.stages > 1 and tile.storage.ordinal >= 0 and tile.storage.tick > t.blocks[-1].tick:
        # Another iteration may overwrite it only when this store is done: give it stages too.
        t.learned.add(("stages", tile.storage.ordinal))
    t.mark().store(x.handle, where_, tile.handle, add)


def gather(x: Tensor, index: Tile, columns: int, column: Any = 0, unit: int = 1) -> Tile:
    """Rows of x named by an int32 row of indices, `unit` rows each, `columns` of them from `column` on. An index outside reads 0."""
    i = _index(x, index, "tl.gather", unit)
    rows, columns, _ = _shape((i.columns * unit, columns))
    out = _loaded(rows, columns, x.dtype, 2)
    out.tracer.mark().gather(out.handle, x.handle, i.handle, _int(column, "column"), unit)
    return out


def scatter(x: Tensor, index: Tile, value: Tile, column: Any = 0, unit: int = 1) -> None:
    """The other way round: rows of `value` become the rows of x that `index` names. An index outside writes nothing."""
    i, tile = _index(x, index, "tl.scatter", unit), _spm(value)
    if tile.rows != i.columns * unit:
        raise tile.tracer.error(f"tl.scatter of {tile.rows} rows with {i.columns} indices of {unit} rows each")
    tile.tracer.mark().scatter(x.handle, tile.handle, i.handle, _int(column, "column"), unit)


def _index(x: Tensor, index: Any, what: str, unit: int) -> Tile:
    t = _tracer()
    if _plain(unit, "unit") < 1:
        raise t.error(f"unit {unit} of {what}, expected at least 1")
    if not isinstance(x, Tensor) or x.ndim != 2:
        raise t.error(f"{what} of {_kind(x)}, expected an array argument of 2 dimensions")
    i = _spm(_tile(index, f"the index of {what}"))
    if i.dtype is not int32 or i.rows != 1:
        raise t.error(f"the index of {what} is {i!r}, expected one row of int32")
    return i


def item(x: Tile, row: Any = 0, column: Any = 0) -> Scalar:
    """One element as a scalar: an integer for int8 and int32, a float otherwise. Waits for the tile, so use it rarely."""
    tile = _spm(x)
    for at, extent, what in ((row, tile.rows, "row"), (column, tile.columns, "column")):
        if isinstance(at, int) and not 0 <= at < extent:
            raise tile.tracer.error(f"{what} {at} of a tile of shape {tile.shape}")
    kind = "int" if tile.dtype in (int8, int32) else "float"
    if kind == "float":
        tile = _convert(tile, float32)
    return Scalar(tile.tracer, tile.tracer.mark().read(tile.handle, _int(row, "row"), _int(column, "column")), kind)


# ---- The matrix engine ----
def drain(acc: Tile, dtype: Any = float32, *, act: str = "none", row_scale: Tile | None = None,
          column_scale: Tile | None = None) -> Tile:
    """Accumulators to scratchpad in one pass: act(acc * row_scale[1, N] * column_scale[M, 1]). act: none, relu, silu, gelu."""
    tile = _tile(acc)
    t = tile.tracer
    if tile.space != "acc":
        raise t.error(f"tl.drain of {tile!r}, which is not in accumulators; they are what tl.dot makes")
    if act not in ("none", "relu", "silu", "gelu"):
        raise t.error(f"act {act!r}, expected none, relu, silu or gelu")
    row, column = (None if x is None else _spm(x) for x in (row_scale, column_scale))
    if row is not None and (row.rows, row.columns) != (1, tile.columns):
        raise t.error(f"row_scale of shape {row.shape}, expected (1, {tile.columns})")
    if column is not None and (column.rows, column.columns) != (tile.rows, 1):
        raise t.error(f"column_scale of shape {column.shape}, expected ({tile.rows}, 1)")
    out = _new(tile.rows, tile.columns, _kernel_dtype(dtype), 2)
    t.mark().drain(out.handle, tile.handle, act, None if row is None else row.handle, None if column is None else column.handle)
    return out


# ---- Reductions: the reduced axis stays, with extent 1 ----
def sum(x: Tile, axis: int | None = None) -> Tile:  # noqa: A001
    """Over an axis, or over all."""
    return _reduce("sum", x, axis)


def max(x: Tile, axis: int | None = None) -> Tile:  # noqa: A001
    """Over an axis, or over all."""
    return _reduce("max", x, axis)


def min(x: Tile, axis: int | None = None) -> Tile:  # noqa: A001
    """Over an axis, or over all."""
    return _reduce("min", x, axis)


def sum_squares(x: Tile, axis: int = -1) -> Tile:
    """Of each row."""
    tile = _tile(x)
    if axis not in (-1, tile.ndim - 1):
        raise tile.tracer.error(f"sum_squares over axis {axis}, expected the last")
    return _reduce("sumsq", tile, axis)


def argmax(x: Tile, axis: int = -1) -> Tile:
    """The column of the largest element of each row (the first of equals), int32."""
    tile = _tile(x)
    if axis not in (-1, tile.ndim - 1):
        raise tile.tracer.error(f"argmax over axis {axis}, expected the last")
    return _convert(_reduce("argmax", tile, axis), int32)


def cumsum(x: Tile) -> Tile:
    """The running sum along each row."""
    tile = _tile(x)
    out = _new(tile.rows, tile.columns, float32, tile.ndim)
    tile.tracer.mark().scan(out.handle, tile.handle)
    return out


def top_k(x: Tile, k: int, base: Any = 0) -> tuple[Tile, Tile]:
    """(values, int32 indices counted from base) of the k largest of each row, largest first; -inf and NaN are left out, and -inf
    with index -1 stands where a row has no more."""
    tile = _tile(x)
    if not 1 <= _plain(k, "k") <= 1024:
        raise tile.tracer.error(f"top_k of {k}, expected 1 to 1024")
    values, indices = _new(tile.rows, k, float32, 2), _new(tile.rows, k, int32, 2)
    tile.tracer.mark().top_k(values.handle, indices.handle, tile.handle, _int(base, "base"), False)
    return values, indices


# ---- Fused steps of language models ----
def mask(x: Tile, first_column: Any, limit: Any, row_step: int = 0, fill: float = -math.inf) -> Tile:
    """x where column + first_column < limit + row * row_step, else fill: bounds and causal masks without comparing tiles."""
    tile = _tile(x)
    if _plain(row_step, "row_step") < 0:
        raise tile.tracer.error(f"row_step {row_step} of tl.mask, expected at least 0")
    number = _plain_float(fill, "fill")
    out = _new(tile.rows, tile.columns, float32, tile.ndim)
    tile.tracer.mark().mask(out.handle, tile.handle, _int(first_column, "first_column"), _int(limit, "limit"), row_step, number)
    return out


class SoftmaxState:
    """Largest value, sum and last correction of each row, for softmax_step."""

    def __init__(self, rows: int):
        t = _tracer()
        self.state = zeros((rows, 4), space="spm")
        t.mark().fill(self.max.handle, -math.inf)

    max = property(lambda self: self.state[:, 0:1], doc="The largest value so far.")
    sum = property(lambda self: self.state[:, 1:2], doc="The sum so far.")
    correction = property(lambda self: self.state[:, 2:3], doc="What sums of earlier blocks are to be multiplied by.")


def softmax_step(scores: Tile, state: SoftmaxState, scale: Any = 1.0, dtype: Any = float32) -> Tile:
    """One block of an online softmax: exp(scores * scale - max so far); brings the state up to date."""
    tile = _tile(scores)
    t = tile.tracer
    if not isinstance(state, SoftmaxState) or state.state.rows != tile.rows:
        raise t.error(f"softmax_step of {tile.rows} rows, expected a tl.SoftmaxState of as many")
    factor = _number(scale)
    if factor is None:
        raise t.error("softmax_step scaled by a tile, expected a number or a scalar")
    kept = _tile(state.state, "the state of softmax_step")
    t.flush()
    out = _new(tile.rows, tile.columns, _kernel_dtype(dtype), 2)
    kept.storage.version += 1
    t.mark().softmax_step(out.handle, tile.handle, kept.handle, factor.reg)
    return out


def softmax(x: Tile) -> Tile:
    """exp(x - max) / sum along each row."""
    tile = _tile(x)
    e = exp(tile - _reduce("max", tile, -1))
    e /= _reduce("sum", e, -1)
    return e


def rmsnorm(x: Tile, weight: Tile, eps: Any = 1e-5) -> Tile:
    """x / sqrt(mean(x**2) + eps) * weight along each row."""
    tile, w = _tile(x), _tile(weight)
    if (w.rows, w.columns) != (1, tile.columns):
        raise tile.tracer.error(f"rmsnorm weight of shape {w.shape}, expected ({tile.columns},)")
    number = _number(eps)
    if number is None:
        raise tile.tracer.error(f"eps of rmsnorm is {eps!r}, expected a number or a scalar")
    out = _new(tile.rows, tile.columns, float32, tile.ndim)
    tile.tracer.mark().rmsnorm(out.handle, tile.handle, w.handle, number.reg)
    return out


def rope(x: Tile, cosine: Tile, sine: Tile, head: int, rotated: int | None = None, *, interleaved: bool = False) -> Tile:
    """Rotary positions: heads of `head` columns, `rotated` of them turned; cosine and sine are [1 or rows, rotated / 2]."""
    tile, c, s = _tile(x), _tile(cosine), _tile(sine)
    r = head if rotated is None else _plain(rotated, "rotated")
    if (_plain(head, "head") < 1 or tile.columns % head or r % 2 or not 0 < r <= head or c.columns != r // 2 or s.shape != c.shape
            or c.rows not in (1, tile.rows)):
        raise tile.tracer.error(f"rope of {tile.shape} with heads of {head}, {r} rotated, tables of {c.shape} and {s.shape}")
    out = _new(tile.rows, tile.columns, float32, tile.ndim)
    tile.tracer.mark().rope("interleaved" if interleaved else "halves", out.handle, tile.handle, c.handle, s.handle, head, r)
    return out


def glu(gate: Tile, up: Tile, act: str = "silu") -> Tile:
    """act(gate) * up."""
    g, u = _tile(gate), _tile(up)
    if (g.rows, g.columns) != (u.rows, u.columns) or act not in ("none", "relu", "silu", "gelu"):
        raise g.tracer.error(f"glu of {g.shape} and {u.shape} with act {act!r}, expected one shape and none, relu, silu or gelu")
    out = _new(g.rows, g.columns, float32, g.ndim)
    g.tracer.mark().glu(act, out.handle, g.handle, u.handle)
    return out


def uniform(shape: Any, seed: Any, counter: Any = 0) -> Tile:
    """Uniform numbers in [0, 1): Philox4x32-10, the same for the same seed and counter on every device."""
    rows, columns, ndim = _shape(shape)
    out = _new(rows, columns, float32, ndim)
    out.tracer.mark().uniform(out.handle, _int(seed, "seed"), _int(counter, "counter"))
    return out


# ---- What is not there ----
def __getattr__(name: str) -> Any:
    if name.startswith("_") or getattr(_active, "tracer", None) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise _tracer().error(f"there is no tl.{name}" + _instead(name))

"""Tiles: two-dimensional values in a core's memory (Tile), their transposed view (Transposed), products nobody has used yet (Dot), and
how they are made, converted, broadcast and computed with.

Knows memory through the Tracer, numbers through _scalars; not array arguments, loops or conditions.
"""
from __future__ import annotations

import numbers
import operator
import weakref
from typing import Any

from ._hints import _instead
from ._recording import Retrace, Tracer, _Storage, _tracer
from ._scalars import Scalar, TileBase, _int, _kind, _load_hint, _number_of, _plain, _refuse, _scalar, to_float
from .dtypes import DType, dtype as _as_dtype, float32, int8, int32


class Tile(TileBase):
    """A two-dimensional value (rows x columns); a 1-D tile is one row."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tracer: Tracer, handle: Any, storage: _Storage, rows: int, columns: int, dtype: DType, ndim: int,
                 space: str = "spm", ordinal: int = -1):
        self.tracer, self.handle, self.storage, self.rows, self.columns = tracer, handle, storage, rows, columns
        self.dtype, self.ndim, self.space, self.ordinal, self.tick = dtype, ndim, space, ordinal, tracer.now()
        self.taken = 0  # the line where its accumulators were given to another value
        storage.tiles.append(weakref.ref(self))

    def __del__(self) -> None:
        tracer = getattr(self, "tracer", None)
        if tracer is not None and not tracer.finished:
            tracer.released(self.tick, self.handle)

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns), or (columns,) of a row."""
        return (self.columns,) if self.ndim == 1 else (self.rows, self.columns)

    @property
    def T(self) -> Transposed:
        """Transposed: free as the right side of tl.dot, a copy elsewhere."""
        return Transposed(self)

    def to(self, dtype: Any) -> Tile:
        """Converted; rounded to nearest even, integers saturate."""
        return _convert(self, _kernel_dtype(dtype))

    def sum(self, axis: int | None = None) -> Tile:
        """Over an axis, or over all."""
        return _reduce("sum", self, axis)

    def max(self, axis: int | None = None) -> Tile:
        """Over an axis, or over all."""
        return _reduce("max", self, axis)

    def min(self, axis: int | None = None) -> Tile:
        """Over an axis, or over all."""
        return _reduce("min", self, axis)

    def __add__(self, o: Any) -> Any: return _binary("add", self, o)
    def __radd__(self, o: Any) -> Any: return _binary("add", o, self)
    def __sub__(self, o: Any) -> Any: return _binary("sub", self, o)
    def __rsub__(self, o: Any) -> Any: return _binary("sub", o, self)
    def __mul__(self, o: Any) -> Any: return _binary("mul", self, o)
    def __rmul__(self, o: Any) -> Any: return _binary("mul", o, self)
    def __truediv__(self, o: Any) -> Any: return _binary("div", self, o)
    def __rtruediv__(self, o: Any) -> Any: return _binary("div", o, self)
    def __matmul__(self, o: Any) -> Any: return dot(self, o)
    def __neg__(self) -> Any: return _unary("neg", self)
    def __abs__(self) -> Any: return _unary("abs", self)
    def __iadd__(self, o: Any) -> Any: return _in_place("add", self, o)
    def __isub__(self, o: Any) -> Any: return _in_place("sub", self, o)
    def __imul__(self, o: Any) -> Any: return _in_place("mul", self, o)
    def __itruediv__(self, o: Any) -> Any: return _in_place("div", self, o)
    def __lt__(self, o: Any) -> Any: return _binary("lt", self, o)
    def __le__(self, o: Any) -> Any: return _binary("le", self, o)
    def __gt__(self, o: Any) -> Any: return _binary("lt", o, self)
    def __ge__(self, o: Any) -> Any: return _binary("le", o, self)
    def __eq__(self, o: Any) -> Any: return _binary("eq", self, o)
    def __ne__(self, o: Any) -> Any: return 1.0 - _binary("eq", self, o)
    def __pos__(self) -> Any: return self

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        apply = _OPERATORS.get(ufunc.__name__)
        if method != "__call__" or apply is None:
            raise self.tracer.error(f"np.{ufunc.__name__} of a tile" + _instead(ufunc.__name__))
        # A NumPy number stands on the left.
        return apply(*(x if isinstance(x, Tile) else _scalar(_number_of(x)) for x in inputs))

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise self.tracer.error(f"np.{function.__name__} of a tile" + _instead(function.__name__))

    def __setitem__(self, key: Any, value: Any) -> None:
        # What "x[...] += y" ends with: the part has changed in place already.
        if not isinstance(value, Tile) or value.storage is not self.storage:
            raise self.tracer.error("assignment to a part of a tile; use tl.where, or change the part in place: x[...] *= 0, x[...] += y")

    def __bool__(self) -> bool:
        raise self.tracer.error("a tile is used in a Python condition (if, while, and, or, not), which is decided while the kernel is "
                                "recorded; use tl.where(condition, a, b)")

    def __iter__(self) -> Any:
        raise self.tracer.error("a tile cannot be iterated over; use tl.item(tile, row, column) for one element")

    def __getitem__(self, key: Any) -> Tile:
        """A part, with Python ints and slices without steps: the same memory."""
        t = self.tracer
        keys = list(key) if isinstance(key, tuple) else [key]
        if self.ndim == 1:
            keys = [slice(None), *keys]
        keys += [slice(None)] * (2 - len(keys))
        if len(keys) > 2:
            raise t.error(f"{len(keys)} indices for a tile of shape {self.shape}")
        bounds = []
        for k, n in zip(keys, (self.rows, self.columns)):
            if isinstance(k, int) and -n <= k < n:
                k = slice(k % n, k % n + 1)
            if not isinstance(k, slice) or k.step not in (None, 1) or any(isinstance(x, Scalar) for x in (k.start, k.stop)):
                raise t.error(f"index {_kind(k)} of a tile of shape {self.shape}; expected Python ints and slices without steps. "
                              "tl.slice_tile takes scalars")
            begin, end, _ = k.indices(n)
            if end <= begin:
                raise t.error(f"an empty part of a tile of shape {self.shape}")
            bounds.append((begin, end - begin))
        return slice_tile(self, bounds[0][0], bounds[1][0], (bounds[0][1], bounds[1][1]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tracer" not in self.__dict__:
            raise AttributeError(name)
        raise self.tracer.error(f"a tile has no {name}" + _instead(name))

    def __repr__(self) -> str:
        return f"<tile {self.shape} {self.dtype.name}>"


_OPERATORS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
              "less": operator.lt, "less_equal": operator.le, "greater": operator.gt, "greater_equal": operator.ge,
              "equal": operator.eq, "not_equal": operator.ne}
_refuse(Tile, "pow rpow", "** of tiles; multiply (x * x), or tl.exp(tl.log(x) * p)")
_refuse(Tile, "floordiv rfloordiv mod rmod divmod rdivmod", "// and % of tiles; tl.floor(a / b), and a - tl.floor(a / b) * b")
_refuse(Tile, "and rand or ror xor rxor invert", "& | ^ ~ of tiles; of comparisons: a * b for \"and\", tl.maximum(a, b) for \"or\", "
        "1 - a for \"not\"")
_refuse(Tile, "lshift rlshift rshift rrshift round", "{} has no such operation; tiles compute in float32: + - * / and the functions of "
        "jalapeno.language")
_refuse(Tile, "len", "len() of a tile; its extents are x.rows and x.columns, which are Python ints")
_refuse(Tile, "float int index array", "a tile is used where Python needs a number now; tl.item(tile, row, column) is one element, "
        "as a scalar of the chip")


class Transposed(Tile):
    """A tile seen with rows and columns exchanged; copied when something else than tl.dot reads it."""

    def __init__(self, base: Tile):
        base = _tile(base)
        self.base = base
        super().__init__(base.tracer, None, base.storage, base.columns, base.rows, base.dtype, 2)
        self.made: tuple[Tile, Any, int] | None = None

    @property
    def T(self) -> Any:
        """The tile itself."""
        return self.base

    def resolved(self) -> Tile:
        """The copy, made at its first use."""
        # The copy serves until the tile changes in place; in another block it may not have been made.
        now = (self.tracer.blocks[-1] if self.tracer.blocks else None, self.storage.version)
        if self.made is None or self.made[1:] != now:
            source = _spm(self.base)
            tile = _new(self.rows, self.columns, source.dtype, 2)
            self.tracer.mark().copy(tile.handle, source.handle, True)
            self.made = (tile, *now)
        return self.made[0]


class Dot(Tile):
    """A product that nothing has used yet: added to accumulators it needs no memory of its own."""

    def __init__(self, a: Tile, b: Tile):
        rows_are_k = type(b) is not Transposed
        left, right = _spm(a), _spm(b.base if isinstance(b, Transposed) else b)
        self.operands: tuple[Tile, Tile, bool] | None = (left, right, rows_are_k)
        super().__init__(left.tracer, None, left.storage, left.rows, right.columns if rows_are_k else right.rows,
                         int32 if left.dtype is int8 else float32, 2, "acc")
        self.made: Tile | None = None
        self.tracer.pending.append(self)

    def into(self, acc: Tile, accumulate: bool) -> None:
        """Multiplies into these accumulators."""
        if self.operands is None:
            raise self.tracer.error("this product was added to accumulators, which does not leave it anywhere; call tl.dot again")
        a, b, rows_are_k = self.operands
        self.operands = None  # lets go of their memory
        self.storage = acc.storage
        self.tracer.pending = [d for d in self.tracer.pending if d is not self]
        self.tracer.mark().mma(acc.handle, a.handle, b.handle, accumulate, rows_are_k)
        acc.storage.version += 1

    def resolved(self) -> Tile:
        """The product in accumulators of its own, made at its first use."""
        if self.made is None:
            made = _new(self.rows, self.columns, self.dtype, 2, "acc")
            self.into(made, False)
            self.made = made
        return self.made


# ---- Making ----
def _kernel_dtype(dtype: Any) -> DType:
    try:
        d = _as_dtype(dtype)
    except TypeError as e:
        raise _tracer().error(str(e)) from None
    if not d.computes:
        raise _tracer().error(f"tiles of {d.name}, which the chip does not compute with")
    return d


def _new(rows: int, columns: int, dtype: DType, ndim: int, space: str = "spm", ordinal: int = -1) -> Tile:
    t = _tracer()
    made = -1
    if space == "spm" and t.stages > 1:
        made = t.temporaries
        t.temporaries += 1
        if ("stages", made) in t.known:
            return _staged(rows, columns, dtype, ndim)
    handle, storage = t.allocate(dtype, rows, columns, space)
    storage.ordinal = made
    return Tile(t, handle, storage, rows, columns, dtype, ndim, space, ordinal)


def _staged(rows: int, columns: int, d: DType, ndim: int) -> Tile:
    """With a buffer for each stage of the innermost loop."""
    t = _tracer()
    block = t.blocks[-1]
    size = -(-d.itemsize * columns * rows // 64) * 64
    t.take("spm", size * block.stages, f"{block.stages} stages of {rows} x {columns} {d.name}")
    b = t.mark()
    staged = b.staged(d.name, rows, columns, block.stages)
    handle = b.stage(staged, block.counter_reg)
    # Its stages belong to the loop until that ends.
    storage = _Storage(t, size, handle.memory(), "spm", in_loop=True)
    block.held.append(staged)
    return Tile(t, handle, storage, rows, columns, d, ndim)


def _shape(shape: Any) -> tuple[int, int, int]:
    """rows, columns and dimensions of a shape: one or two Python ints."""
    t = _tracer()
    extents = list(shape) if isinstance(shape, (tuple, list)) else [shape]
    for n in extents:
        if isinstance(n, Scalar):
            raise t.error("a tile's shape holds a value of the chip; shapes must be Python ints (bounds clip loads and stores)")
        if not isinstance(n, int) or isinstance(n, bool) or not 0 < n < 65536:
            raise t.error(f"tile shape {shape!r}, expected one or two Python ints from 1 to 65535")
    if len(extents) not in (1, 2):
        raise t.error(f"tile shape {shape!r}, expected one or two Python ints from 1 to 65535")
    return (1, extents[0], 1) if len(extents) == 1 else (extents[0], extents[1], 2)


# ---- Places and types ----
def _tile(x: Any, what: str = "a value") -> Tile:
    if isinstance(x, (Dot, Transposed)):
        x = x.resolved()
    if isinstance(x, Tile):
        if x.taken:
            raise x.tracer.error(f"{what}: this tile's accumulators were added to at line {x.taken}; use the result, or tl.copy() before")
        x.tracer.known_here(x)
        return x
    raise _tracer().error(f"{what} is {_kind(x)}, expected a tile" + _load_hint(x))


def _spm(x: Any) -> Tile:
    """In scratchpad: accumulators are drained."""
    tile = _tile(x)
    return tile if tile.space == "spm" else _convert(tile, tile.dtype)


def _convert(x: Any, dtype: DType, act: str = "none") -> Tile:
    tile = _tile(x)
    if tile.space == "spm" and tile.dtype is dtype and act == "none":
        return tile
    out = _new(tile.rows, tile.columns, dtype, tile.ndim)
    b = tile.tracer.mark()
    if tile.space == "acc":
        b.drain(out.handle, tile.handle, act, None, None)
    else:
        b.unary("copy" if act == "none" else act, out.handle, tile.handle)
    return out


def copy(x: Any) -> Any:
    """The value in memory of its own (a scalar: in a register of its own)."""
    if isinstance(x, Scalar):
        return _duplicate(x)
    tile = _tile(x)
    out = _new(tile.rows, tile.columns, tile.dtype, tile.ndim)
    b = tile.tracer.mark()
    if tile.space == "acc":
        b.drain(out.handle, tile.handle, "none", None, None)
    else:
        b.copy(out.handle, tile.handle, False)
    return out


def _duplicate(value: Any) -> Any:
    """The value in a place of its own."""
    if isinstance(value, Scalar):
        value = _scalar(value)
        return Scalar(value.tracer, value.tracer.mark().scalar_op("add", value.reg, 0), value.kind)
    return copy(value)


def slice_tile(x: Tile, row: Any, column: Any, shape: Any) -> Tile:
    """The part of this shape from (row, column) on, which may be scalars: the same memory."""
    tile = _tile(x)
    rows, columns, _ = _shape(shape)
    for at, n, whole in ((row, rows, tile.rows), (column, columns, tile.columns)):
        if n > whole or isinstance(at, int) and not 0 <= at <= whole - n:
            raise tile.tracer.error(f"a part of {rows} x {columns} from ({row!r}, {column!r}) on, of a tile of shape {tile.shape}")
    handle = tile.tracer.mark().slice(tile.handle, _int(row, "row"), _int(column, "column"), rows, columns)
    return Tile(tile.tracer, handle, tile.storage, rows, columns, tile.dtype, tile.ndim if rows == 1 else 2, tile.space)


# ---- Arithmetic ----
def _broadcast(what: str, *tiles: Tile) -> tuple[int, int, int]:
    out = []
    for extents in ([x.rows for x in tiles], [x.columns for x in tiles]):
        large = {n for n in extents if n != 1}
        if len(large) > 1:
            raise _tracer().error(f"{what} of shapes {' and '.join(str(x.shape) for x in tiles)}, which do not broadcast")
        out.append(large.pop() if large else 1)
    return out[0], out[1], max(x.ndim for x in tiles)


def _expand(x: Tile, rows: int, columns: int) -> Tile:
    """Broadcast by a copy."""
    if (x.rows, x.columns) == (rows, columns):
        return x
    out = _new(rows, columns, float32, 2 if rows > 1 else x.ndim)
    b = x.tracer.mark()
    b.fill(out.handle, -0.0)  # the number that changes nothing when it is added
    b.binary("add", out.handle, out.handle, x.handle, False)
    return out


def _number(x: Any) -> Scalar | None:
    """A number or scalar as a float scalar; None for a tile."""
    if isinstance(x, Tile):
        return None
    x = _number_of(x)
    if isinstance(x, Scalar):
        return to_float(x)
    if isinstance(x, numbers.Real):
        return _scalar(float(x))
    raise _tracer().error(f"{_kind(x)} beside a tile, expected a tile, a scalar or a number" + _load_hint(x))


def _binary(op: str, a: Any, b: Any) -> Any:
    t = _tracer()
    if op == "add":
        for acc, dot_ in ((a, b), (b, a)):
            if type(acc) is Tile and type(dot_) is Dot and dot_.made is None and acc.shape == dot_.shape:
                if acc.ordinal >= 0 and acc.space == "spm" and acc.dtype is dot_.dtype:
                    raise Retrace(("acc", acc.ordinal))
                if acc.space == "acc" and acc.dtype is dot_.dtype:
                    _tile(acc)
                    dot_.into(acc, True)
                    out = Tile(t, acc.handle, acc.storage, acc.rows, acc.columns, acc.dtype, 2, "acc", acc.ordinal)
                    out.tick, acc.taken = acc.tick, t.line()
                    return out
    return _emit_binary(op, a, b, None)


def _emit_binary(op: str, a: Any, b: Any, out: Tile | None) -> Tile:
    t = _tracer()
    x, y = _number(a), _number(b)
    if x is not None or y is not None:
        tile = _tile(b if x is not None else a)
        to = out if out is not None else _new(tile.rows, tile.columns, float32, tile.ndim)
        number = x if x is not None else y
        t.mark().binary(op, to.handle, tile.handle, number.reg, x is not None)  # type: ignore[union-attr]
        return to
    left, right = _tile(a), _tile(b)
    rows, columns, ndim = _broadcast(_SIGNS[op], left, right)
    full = (rows, columns)
    if (left.rows, left.columns) != full and (right.rows, right.columns) != full:
        left = _expand(left, rows, columns)
    to = out if out is not None else _new(rows, columns, float32, ndim)
    if (left.rows, left.columns) == full:
        t.mark().binary(op, to.handle, left.handle, right.handle, False)
    else:
        t.mark().binary(op, to.handle, right.handle, left.handle, True)
    return to


_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "==", "min": "tl.minimum", "max": "tl.maximum"}


def _in_place(op: str, x: Any, y: Any) -> Tile:
    t = _tracer()
    if type(x) is Transposed:
        raise t.error("a transposed tile is changed in place; write x = x + y, or change the tile itself")
    x = _tile(x)
    if op == "add" and type(y) is Dot and y.made is None and x.shape == y.shape and x.dtype is y.dtype:
        if x.space == "acc":
            y.into(x, True)
            return x
        if x.ordinal >= 0:
            raise Retrace(("acc", x.ordinal))
    if isinstance(y, Tile):
        if _broadcast(_SIGNS[op], x, y)[:2] != (x.rows, x.columns):
            raise t.error(f"{_SIGNS[op]}= of shapes {x.shape} and {y.shape}: in place the left shape stays")
        y = _tile(y)
        if y.storage is x.storage and y.handle is not x.handle:
            y = copy(y)  # a part of x itself, which would change while it is read
    t.flush()
    x.storage.version += 1
    return _emit_binary(op, x, y, x)


def _unary(op: str, x: Any) -> Any:
    tile = _tile(x)
    if tile.space == "acc" and op in ("relu", "silu", "gelu") and tile.dtype is float32:
        return _convert(tile, float32, op)
    out = _new(tile.rows, tile.columns, float32, tile.ndim)
    tile.tracer.mark().unary(op, out.handle, tile.handle)
    return out


def _reduce(op: str, x: Any, axis: int | None) -> Tile:
    tile = _tile(x)
    t = tile.tracer
    if isinstance(axis, Tile):
        raise t.error(f"tl.{op} takes one tile and an axis" + (f"; tl.{op}imum(a, b) works on two" if op in ("max", "min") else ""))
    if axis is not None and not -tile.ndim <= _plain(axis, "axis") < tile.ndim:
        raise t.error(f"axis {axis} of a tile of shape {tile.shape}")
    if axis is not None and axis % tile.ndim == 0 and tile.ndim == 2:
        # The engine reduces rows.
        turned = _reduce(op, Transposed(tile), 1)
        return Transposed(turned).resolved()
    out = _new(tile.rows, 1, float32, tile.ndim)
    t.mark().reduce(op, out.handle, tile.handle)
    if axis is None and tile.rows > 1:
        return _reduce(op, Transposed(out).resolved(), 1)
    return out


def dot(a: Any, b: Any, acc: Tile | None = None) -> Tile:
    """a[M, K] @ b[K, N] with float32 sums (int8 by int8: int32, exact; reading them out is, up to 2**24). b may be a transposed
    tile (w.T), which costs nothing.
    acc: accumulators to add to in place; "acc += tl.dot(a, b)" is the same."""
    t = _tracer()
    for x in (a, b):
        if not isinstance(x, Tile):
            _tile(x, "an operand of tl.dot")
    a = _tile(a)
    if type(b) is not Transposed:
        b = _tile(b)
    if a.columns != b.rows:
        raise t.error(f"tl.dot of shapes {a.shape} and {b.shape}, expected [M, K] and [K, N]"
                      + ("; the right side may be transposed: b.T" if a.columns == b.columns else ""))
    if (a.dtype is int8) != (b.dtype is int8) or int32 in (a.dtype, b.dtype):
        raise t.error(f"tl.dot of {a.dtype.name} and {b.dtype.name}, expected two float types or int8 twice; .to(dtype) converts")
    product = Dot(a, b)
    if acc is None:
        return product
    target = _tile(acc, "acc")
    if target.shape != product.shape or target.dtype is not product.dtype:
        raise t.error(f"tl.dot into {target!r}, expected shape {product.shape} of {product.dtype.name}")
    return _in_place("add", target, product)

"""What a core computes in registers, integers and floats (Scalar) and their comparisons (Condition), and the array arguments of a
kernel (Tensor), whose extents are such scalars; with the checks of numbers that functions of the language take.

Knows of tiles only that operators beside them are theirs (TileBase).
"""
from __future__ import annotations

import numbers
from typing import Any, Iterator, Sequence

from ._frames import Carried
from ._recording import Tracer, _tracer
from .dtypes import DType


class TileBase(Carried):
    """The base of tiles: a scalar leaves an operator beside one to it."""


class Condition(Carried):
    """A comparison of integer scalars: for when() and device_assert(). ~condition is its opposite."""

    def __init__(self, a: Scalar, op: str, b: Scalar):
        if a.kind == "float":
            raise _tracer().error("a comparison of float scalars; compare integers, or put the values into tiles and use tl.where")
        self.a, self.op, self.b = a, op, b

    def __invert__(self) -> Condition:
        return Condition(self.a, _OPPOSITE[self.op], self.b)

    def __bool__(self) -> bool:
        raise _tracer().error("a value of the chip is used in a Python condition (if, while, and, or, not, min, max), which is decided "
                              "while the kernel is recorded; use \"with tl.when(a < b):\" for what runs conditionally (nest them for "
                              "\"and\"), tl.minimum and tl.maximum, or tl.where(...) for tiles")

    def _combined(self, _: Any) -> Any:
        raise _tracer().error("conditions combined with & or |; nest \"with tl.when(...):\" for \"and\"")

    __and__ = __or__ = __rand__ = __ror__ = _combined


_OPPOSITE = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}


class Scalar(Carried):
    """A 64-bit integer or a float in a register of the core. // and % of integers round toward zero, as C's."""

    __slots__ = ("tracer", "reg", "kind", "tick", "__weakref__")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None

    def __init__(self, tracer: Tracer, reg: Any, kind: str):
        self.tracer, self.reg, self.kind, self.tick = tracer, reg, kind, tracer.now()

    def __del__(self) -> None:
        if not self.tracer.finished:
            self.tracer.released(self.tick, self.reg)

    def _op(self, other: Any, name: str, swap: bool = False) -> Any:
        if isinstance(other, TileBase):
            return NotImplemented
        a, b = _both(self, other)
        if swap:
            a, b = b, a
        if a.kind == "float":
            if name not in ("add", "sub", "mul", "div"):
                raise self.tracer.error(f"{name} of float scalars; there are + - * /")
            name = "f" + name
        elif name == "div":
            raise self.tracer.error("/ of integer scalars; use // (rounds toward zero), tl.cdiv, or tl.to_float()")
        elif name == "floordiv":
            name = "div"
        return Scalar(self.tracer, self.tracer.mark().scalar_op(name, a.reg, b.reg), a.kind)

    def __add__(self, o: Any) -> Any: return self._op(o, "add")
    def __radd__(self, o: Any) -> Any: return self._op(o, "add", True)
    def __sub__(self, o: Any) -> Any: return self._op(o, "sub")
    def __rsub__(self, o: Any) -> Any: return self._op(o, "sub", True)
    def __mul__(self, o: Any) -> Any: return self._op(o, "mul")
    def __rmul__(self, o: Any) -> Any: return self._op(o, "mul", True)
    def __truediv__(self, o: Any) -> Any: return self._op(o, "div")
    def __rtruediv__(self, o: Any) -> Any: return self._op(o, "div", True)
    def __floordiv__(self, o: Any) -> Any: return self._op(o, "floordiv")
    def __rfloordiv__(self, o: Any) -> Any: return self._op(o, "floordiv", True)
    def __mod__(self, o: Any) -> Any: return self._op(o, "mod")
    def __rmod__(self, o: Any) -> Any: return self._op(o, "mod", True)
    def __and__(self, o: Any) -> Any: return self._op(o, "and")
    def __rand__(self, o: Any) -> Any: return self._op(o, "and")
    def __or__(self, o: Any) -> Any: return self._op(o, "or")
    def __ror__(self, o: Any) -> Any: return self._op(o, "or")
    def __xor__(self, o: Any) -> Any: return self._op(o, "xor")
    def __rxor__(self, o: Any) -> Any: return self._op(o, "xor")
    def __lshift__(self, o: Any) -> Any: return self._op(o, "shl")
    def __rlshift__(self, o: Any) -> Any: return self._op(o, "shl", True)
    def __rshift__(self, o: Any) -> Any: return self._op(o, "shr")
    def __rrshift__(self, o: Any) -> Any: return self._op(o, "shr", True)
    def __neg__(self) -> Any: return self._op(0, "sub", True)
    def __pos__(self) -> Any: return self

    def _compare(self, o: Any, op: str) -> Any:
        if isinstance(o, TileBase):
            return NotImplemented
        a, b = _both(self, o)
        return Condition(a, op, b)

    def __lt__(self, o: Any) -> Any: return self._compare(o, "lt")
    def __le__(self, o: Any) -> Any: return self._compare(o, "le")
    def __gt__(self, o: Any) -> Any: return self._compare(o, "gt")
    def __ge__(self, o: Any) -> Any: return self._compare(o, "ge")
    def __eq__(self, o: Any) -> Any: return self._compare(o, "eq")
    def __ne__(self, o: Any) -> Any: return self._compare(o, "ne")

    __bool__ = Condition.__bool__  # type: ignore[assignment]

    def __index__(self) -> int:
        raise self.tracer.error("a value of the chip is used where Python needs a number now (range, a shape, an index); for loops use "
                                "tl.range(...), shapes must be Python ints")

    __int__ = __float__ = __index__  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.kind} scalar>"


def _scalar(x: Any) -> Scalar:
    if isinstance(x, Scalar):
        x.tracer.known_here(x)
        return x
    t = _tracer()
    if isinstance(x, numbers.Integral):
        number = int(x)
        if not -2**63 <= number < 2**63:
            raise t.error(f"{number} is an integer that 64 bits do not hold")
        return Scalar(t, t.mark().constant(number), "int")
    if isinstance(x, numbers.Real):
        return Scalar(t, t.mark().constant_f32(float(x)), "float")
    raise t.error(f"{_kind(x)} where a number or a scalar is expected" + _load_hint(x))


def _load_hint(x: Any) -> str:
    return "; tl.load makes a tile of it" if isinstance(x, Tensor) else ""


def _both(a: Any, b: Any) -> tuple[Scalar, Scalar]:
    # A Python int beside a float is a float.
    if isinstance(a, Scalar) and a.kind == "float" and isinstance(b, int):
        b = float(b)
    if isinstance(b, Scalar) and b.kind == "float" and isinstance(a, int):
        a = float(a)
    x, y = _scalar(a), _scalar(b)
    if x.kind != y.kind:
        x, y = to_float(x), to_float(y)
    return x, y


def _int(x: Any, what: str) -> Any:
    """A Python int, or the register of an integer scalar."""
    if isinstance(x, Scalar):
        if x.kind != "int":
            raise _tracer().error(f"{what} is a float scalar, expected an integer; tl.to_int() converts")
        x.tracer.known_here(x)
        return x.reg
    if not isinstance(x, numbers.Integral):
        raise _tracer().error(f"{what} is {_kind(x)}, expected an int or an integer scalar")
    return int(x)


def _plain(x: Any, what: str) -> int:
    """A Python int; not something the chip computes."""
    if isinstance(x, bool) or not isinstance(x, numbers.Integral):
        raise _tracer().error(f"{what} is {_kind(x)}, expected a Python int")
    return int(x)


def _plain_float(x: Any, what: str) -> float:
    if not isinstance(x, numbers.Real):
        raise _tracer().error(f"{what} is {_kind(x)}, expected a Python number")
    return float(x)


def _kind(x: Any) -> str:
    return repr(x) if x is None or isinstance(x, (TileBase, Scalar, Tensor, numbers.Number, str)) else f"a {type(x).__name__}"


def _number_of(x: Any) -> Any:
    """NumPy's arrays of no dimensions are numbers."""
    return x.item() if type(x).__module__ == "numpy" and getattr(x, "ndim", 1) == 0 else x


def to_float(x: Any) -> Scalar:
    """An integer scalar as a float."""
    s = _scalar(x)
    return s if s.kind == "float" else Scalar(s.tracer, s.tracer.mark().scalar_op("i2f", s.reg, 0), "float")


def _two(a: Any, b: Any, op: str, name: str) -> Scalar:
    x, y = _both(a, b)
    if x.kind == "float":
        raise x.tracer.error(f"{name} of float scalars, expected integers")
    return Scalar(x.tracer, x.tracer.mark().scalar_op(op, x.reg, y.reg), "int")


class Tensor:
    """An array argument. shape[k] is a scalar; dtype and ndim are known while recording."""

    __hash__ = object.__hash__

    def __init__(self, tracer: Tracer, name: str, handle: Any, dtype: DType, ndim: int):
        self.tracer, self.name, self.handle, self.dtype, self.ndim = tracer, name, handle, dtype, ndim

    @property
    def shape(self) -> tuple[Scalar, ...]:
        """The extents, known when the kernel runs."""
        return _Extents(self)  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "tracer" not in self.__dict__:
            raise AttributeError(name)
        raise self.tracer.error(f"array argument {self.name} has no {name}; use tl.load(...) to get a tile, .shape, .dtype or .ndim")

    def __repr__(self) -> str:
        return f"<array argument {self.name}, {self.dtype.name}, {self.ndim} dimensions>"


class _Extents(Sequence):
    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"<shape of {self.tensor.name}>"

    def __len__(self) -> int:
        return self.tensor.ndim

    def __iter__(self) -> Iterator[Scalar]:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, k: Any) -> Any:
        x = self.tensor
        if isinstance(k, slice):
            return tuple(self[n] for n in range(*k.indices(x.ndim)))
        if not -x.ndim <= _plain(k, f"the index of the shape of {x.name}") < x.ndim:
            raise x.tracer.error(f"shape[{k}] of {x!r}")
        return Scalar(x.tracer, x.tracer.mark().dim(x.handle, k % x.ndim), "int")


def _refuse(cls: type, names: str, message: str) -> None:
    """Operators that a class does not have say what to write instead. {} in the message: repr of the value."""
    def refused(self: Any, *_: Any, **__: Any) -> Any:
        raise self.tracer.error(message.replace("{}", repr(self)))

    for name in names.split():
        setattr(cls, f"__{name}__", refused)


_refuse(Tensor, "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow matmul rmatmul neg pos abs and or "
        "xor lt gt le ge eq ne getitem setitem iter bool float int index array array_ufunc array_function",
        "arithmetic on {}, which lies in memory; tl.load(...) makes a tile of it")
_refuse(Tensor, "len", "len() of {}; its extents are x.shape[0], x.shape[1], ...")
_refuse(Scalar, "pow rpow", "** of scalars; there are + - * // % << >> & | ^")
_refuse(Scalar, "abs round floor ceil trunc invert divmod rdivmod matmul rmatmul len iter getitem",
        "{} has no such operation; there are + - * // % << >> & | ^, tl.cdiv, tl.minimum, tl.maximum and comparisons for tl.when")

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
"""
from __future__ import annotations

import ast
import builtins
import ctypes
import difflib
import dis
import functools
import linecache
import math
import numbers
import operator
import sys
import threading
import weakref
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, Iterator, Sequence

from ._core import tile as _t
from .dtypes import DType, bfloat16, dtype as _as_dtype, float16, float32, int8, int32
from .errors import CompileError

_active = threading.local()

Shape = Sequence[int]


def _tracer() -> Tracer:
    tracer = getattr(_active, "tracer", None)
    if tracer is None:
        raise CompileError("the tile language works only inside a function decorated with @jalapeno.kernel, while it is recorded")
    return tracer


class Retrace(BaseException):
    """Recording has learned facts about this kernel and starts again. ("acc", n): tl.zeros number n belongs in accumulators;
    ("stages", n): temporary number n of loops with stages gets stages itself; ("own", block, path): what a name holds must be
    copied before a block that changes it, because somebody else keeps it."""

    def __init__(self, *facts: tuple):
        self.facts = facts


# ---- Recording ----
Path = tuple  # of a value in a frame: a local name, then (".", attribute), ("[", key) or ("len",)
_ABSENT = object()


class _Block:
    """An open loop or condition."""

    def __init__(self, tick: int, loop: bool, line: int):
        self.tick, self.loop, self.line = tick, loop, line
        self.held: list[Any] = []  # made before the loop and given back inside: another iteration still reads them
        self.names: dict[Path, Any] = {}
        self.stages = 1
        self.counter_reg: Any = None
        self.number = 0
        self.left = 0  # the line of a break or return that left it


class Tracer:
    """Records one kernel. Knows which memory is free and what a loop carries from one iteration to the next."""

    def __init__(self, name: str, code: CodeType, spm_bytes: int, acc_bytes: int, known: frozenset[tuple]):
        self.builder = _t.Builder(name, code.co_filename, code.co_firstlineno)
        self.name, self.code, self.file = name, code, code.co_filename
        self.at = code.co_firstlineno  # line of the last instruction
        self.limits = {"spm": spm_bytes, "acc": acc_bytes}
        self.used = {"spm": 0, "acc": 0}
        self.sizes: list[tuple[int, str]] = []
        self.known = known
        self.learned: set[tuple] = set()  # in the loop that is being recorded
        self.zeros = 0
        self.temporaries = 0
        self.tick = 0
        self.opened = 0
        self.blocks: list[_Block] = []
        self.free: dict[str, list[tuple[int, Any]]] = {"spm": [], "acc": []}
        self.pending: list[Dot] = []
        self.finished = False

    @property
    def stages(self) -> int:
        """Of the innermost block."""
        return self.blocks[-1].stages if self.blocks else 1

    # -- Where we are --
    def line(self) -> int:
        """The line of the kernel's file that is being executed, the innermost one."""
        frame: FrameType | None = sys._getframe(1)
        line = 0
        while frame is not None:
            if not line and frame.f_code.co_filename == self.file:
                line = frame.f_lineno
            if frame.f_code is self.code:
                return line
            frame = frame.f_back
        return self.at

    def mark(self) -> Any:
        self.at = self.line()
        self.builder.at(self.at)
        return self.builder

    def error(self, message: str, line: int = 0) -> CompileError:
        return CompileError(f"kernel {self.name}: {message}", self.file, line or self.line())

    def now(self) -> int:
        self.tick += 1
        return self.tick

    # -- Memory --
    def allocate(self, dtype: DType, rows: int, columns: int, space: str) -> tuple[Any, _Storage]:
        size = -(-dtype.itemsize * columns * rows // 64) * 64
        full = self.used[space] + size > self.limits[space]
        # Large pieces are left to large tiles while there is room.
        best = builtins.min((n for n, _ in self.free[space] if size <= n and (n <= 2 * size or full)), default=None)
        b = self.mark()
        if best is not None:
            at = next(k for k, (n, _) in enumerate(self.free[space]) if n == best)
            memory = self.free[space].pop(at)[1]
            return b.overlay(memory, dtype.name, rows, columns), _Storage(self, best, memory, space)
        self.take(space, size, f"{rows} x {columns} {dtype.name}")
        make = b.spm if space == "spm" else b.acc
        handle = make(dtype.name, rows, columns)
        return handle, _Storage(self, size, handle.memory(), space)

    def take(self, space: str, size: int, what: str) -> None:
        self.used[space] += size
        self.sizes.append((size, f"{what} at line {self.line()}"))
        if self.used[space] > self.limits[space]:
            largest = ", ".join(text for _, text in sorted(self.sizes, reverse=True)[:3])
            kind = "scratchpad" if space == "spm" else "accumulators"
            raise self.error(f"needs {self.used[space]} bytes of {kind}, a core has {self.limits[space]}; the largest tiles are "
                             f"{largest}. Use smaller tiles, fewer stages, or del tiles that are not needed any more")

    def released(self, tick: int, *things: Any, in_loop: bool = False) -> bool:
        """Holds what an open loop that began after `tick` still needs; False when nothing does."""
        for block in self.blocks:
            if block.loop and (block.tick > tick or (in_loop and block is self.blocks[-1])):
                block.held.extend(things)
                return True
        return False

    # -- Blocks --
    def open(self, block: _Block, frame: FrameType) -> None:
        self.flush()
        self.opened += 1
        block.number = self.opened
        block.names = _names(frame)
        for path, value in block.names.items():
            if ("own", block.number, path) in self.known:
                _rebind(frame, path, _duplicate(value))
        block.names = _names(frame)
        block.tick = self.now()
        self.blocks.append(block)

    def close(self, block: _Block, frame: FrameType) -> None:
        self.flush()
        if not self.blocks or self.blocks[-1] is not block:
            raise self.left()
        self.carry(block, frame)
        self.mark().end_block()
        self.blocks.pop()
        block.names.clear()
        held, block.held = block.held, []
        for storage in [h for h in held if isinstance(h, _Storage)]:
            if not self.released(storage.tick, storage):
                storage.give()

    def left(self) -> CompileError:
        block = self.blocks[-1]
        return self.error("the loop is left by break or return, which tl.range does not allow; it runs on the chip, and is recorded once",
                          block.left or block.line)

    def carry(self, block: _Block, frame: FrameType) -> None:
        """What a name holds at the end of a block, where it held something else at its begin: the next iteration reads the old
        place, so the new value is copied there, and the name stands for that place again."""
        now = _names(frame)
        live = {name: _live(frame, name) for name in {path[0] for path in now}}
        moves: list[tuple[Path, Any, Any]] = []
        for path, old in block.names.items():
            new = now.get(path, _ABSENT)
            if new is old or new is _ABSENT or not live[path[0]]:
                continue
            place, value = self.carried(_text(path), old, new, "loop" if block.loop else "condition")
            if place is value:
                continue
            if ("own", block.number, path) not in self.known and _kept_elsewhere(old, path, block, now, place is old):
                self.learned.add(("own", block.number, path))
            moves.append((path, place, value))
        if self.learned:
            raise Retrace(*self.learned)
        if not moves:
            return
        # Values that lie in places which now change are saved first: "a, b = b, a + b", or "previous = x; x = x + 1".
        changing = [place for _, place, _ in moves]
        moves = [(path, place, _duplicate(value) if _lies_in(value, changing) else value) for path, place, value in moves]
        moving = {path for path, _, _ in moves}
        kept = [(path, value) for path, value in now.items() if path not in moving and live[path[0]] and _lies_in(value, changing)]
        for path, value in kept:
            _rebind(frame, path, _duplicate(value))
        for path, place, value in moves:
            if isinstance(place, Scalar):
                self.mark().assign(place.reg, value.reg)
            else:
                self.mark().copy(place.handle, value.handle, False)
                place.storage.version += 1
                place.taken = 0
            _rebind(frame, path, place)

    def carried(self, name: str, old: Any, new: Any, kind: str) -> tuple[Any, Any]:
        """The place a changed value goes to, and the value; the same object twice when it is there already."""
        if isinstance(old, Scalar) and isinstance(new, (Scalar, int, float)):
            scalar_ = _scalar(float(new)) if old.kind == "float" and isinstance(new, int) else _scalar(new)
            if scalar_.kind != old.kind:
                raise self.error(f"{name} changes from {old.kind} to {scalar_.kind} in the {kind}; use tl.to_float() or tl.to_int()")
            return old, scalar_
        if not isinstance(old, Tile):
            if old.__class__ is new.__class__ and not isinstance(old, (Scalar, Condition)) and (old == new or old != old):
                return old, old
            if name.endswith("(len)"):
                raise self.error(f"{name[:-5]} grows or shrinks in a {kind} of the chip, which is recorded once; it holds the same tiles "
                                 "in every iteration")
            what = "scalar" if isinstance(old, Scalar) else "comparison" if isinstance(old, Condition) else repr(old)
            if isinstance(old, numbers.Number) and not isinstance(old, bool):
                raise self.error(f"{name} is a Python number that changes in a {kind} of the chip, which is recorded once; "
                                 f"make it a value of the chip before it: {name} = tl.scalar({old!r})")
            raise self.error(f"{name} is {'a ' * isinstance(old, (Scalar, Condition))}{what} before the {kind} and {_kind(new)} at its "
                             f"end; the {kind} is recorded once, so it must be the same kind of value")
        if type(old) is Transposed:
            raise self.error(f"{name} is a transposed tile before the {kind} and changes in it; start with tl.copy(x.T)")
        if not isinstance(new, Tile):
            raise self.error(f"{name} is a tile before the {kind} and {_kind(new)} at its end; the {kind} is recorded once, so it must "
                             "be the same kind of value")
        place, value = _tile(old) if type(old) is Dot else old, _tile(new)
        if value.storage is place.storage and value.handle is place.handle:
            return value, value
        if (value.rows, value.columns) != (place.rows, place.columns) or value.dtype is not place.dtype:
            raise self.error(f"{name} changes from {place!r} to {value!r} in the {kind}; it must keep shape and type "
                             f"(x.to({place.dtype.name}) converts)")
        return place, value

    def flush(self) -> None:
        """Products that nothing has used yet are made now: what they read may change."""
        pending, self.pending = self.pending, []
        for dot in pending:
            dot.resolved()


class _Storage:
    """Memory of one or more tiles; free again when the last is gone."""

    def __init__(self, tracer: Tracer, size: int, memory: Any, space: str, in_loop: bool = False):
        self.tracer, self.size, self.memory, self.space, self.tick, self.in_loop = tracer, size, memory, space, tracer.now(), in_loop
        self.ordinal = -1  # among the temporaries of loops with stages
        self.version = 0  # counts changes in place
        self.tiles: list[weakref.ref[Tile]] = []

    def give(self) -> None:
        self.tracer.free[self.space].append((self.size, self.memory))
        self.memory = None

    def __del__(self) -> None:
        if self.memory is None or self.tracer.finished:
            return
        # The object itself is going: another takes its place while a loop needs the memory.
        if any(b.loop and (b.tick > self.tick or self.in_loop) for b in self.tracer.blocks):
            heir = _Storage(self.tracer, self.size, self.memory, self.space)
            heir.tick = self.tick
            self.tracer.released(self.tick, heir, in_loop=self.in_loop)
        else:
            self.give()


# None of the following may be a function inside another that calls itself: such a closure is a cycle, which would keep tiles
# and their memory until Python's garbage collector runs.
def _names(frame: FrameType) -> dict[Path, Any]:
    """The values, numbers, strings and Nones that local names of a frame hold, also inside lists, tuples, dicts and objects."""
    out: dict[Path, Any] = {}
    local = frame.f_locals
    for name, value in list(local.items()):
        _collect(out, (name,), value)
    if type(local) is dict:
        local.clear()  # CPython keeps this copy with the frame, and with it tiles that are gone
    return out


def _collect(out: dict[Path, Any], path: Path, value: Any) -> None:
    if value is None or isinstance(value, (Scalar, Tile, Condition, numbers.Number, str)):
        out[path] = value
    elif len(path) > 4 or isinstance(value, (type, ModuleType, FunctionType)) or type(value).__module__ == __name__:
        return
    elif isinstance(value, (list, tuple, dict)):
        out[path + (("len",),)] = len(value)
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            _collect(out, path + (("[", k),), v)
    elif hasattr(value, "__dict__"):
        for k, v in vars(value).items():
            _collect(out, path + ((".", k),), v)


def _rebind(frame: FrameType, path: Path, value: Any) -> None:
    """Lets the name (or the element of what it holds) stand for another value."""
    local = frame.f_locals
    local[path[0]] = _put(local[path[0]], path[1:], value)
    ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    if type(local) is dict:
        local.clear()


def _put(holder: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    how, key = path[0]
    if how == ".":
        setattr(holder, key, _put(getattr(holder, key), path[1:], value))
    elif isinstance(holder, tuple):
        parts = [_put(v, path[1:], value) if k == key else v for k, v in enumerate(holder)]
        return type(holder)(*parts) if hasattr(holder, "_fields") else tuple(parts)
    else:
        holder[key] = _put(holder[key], path[1:], value)
    return holder


def _text(path: Path) -> str:
    return path[0] + "".join(f".{k[1]}" if k[0] == "." else f"[{k[1]!r}]" if k[0] == "[" else "(len)" for k in path[1:])


@functools.lru_cache(maxsize=256)
def _flow(code: CodeType) -> dict[int, tuple[dis.Instruction, list[int]]]:
    """Instructions by offset, each with what may run after it."""
    instructions = list(dis.get_instructions(code))
    handlers = dis._parse_exception_table(code)  # type: ignore[attr-defined]
    out: dict[int, tuple[dis.Instruction, list[int]]] = {}
    for i, following in zip(instructions, [*instructions[1:], None]):
        after = []
        if following is not None and not i.opname.startswith(("RETURN", "RAISE", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD")):
            after.append(following.offset)
        if i.opcode in dis.hasjrel or i.opcode in dis.hasjabs:
            after.append(i.argval)
        if i.opname == "BEFORE_WITH" and following is not None:
            # The chip may skip the body; for Python that is the way of an exception that the with statement swallows.
            after += [h.target for h in handlers if h.start <= following.offset < h.end]
        out[i.offset] = i, after
    return out


def _live(frame: FrameType, name: str) -> bool:
    """Whether anybody may read what a local name holds now: a later statement, or the next iteration of a loop."""
    code = frame.f_code
    if name in code.co_cellvars or name in code.co_freevars:
        return True
    flow, seen, open_ = _flow(code), set(), [frame.f_lasti]
    while open_:
        at = open_.pop()
        if at in seen or at not in flow:
            continue
        seen.add(at)
        i, after = flow[at]
        if i.opcode in dis.haslocal and i.argval == name:
            if i.opname.startswith("LOAD"):
                return True
        else:
            open_ += after
    return False


def _duplicate(value: Any) -> Any:
    """The value in a place of its own."""
    if isinstance(value, Scalar):
        return Scalar(value.tracer, value.tracer.mark().scalar_op("add", value.reg, 0), value.kind)
    return copy(value)


def _lies_in(value: Any, places: list[Any]) -> bool:
    if isinstance(value, Tile):
        return any(isinstance(p, Tile) and p.storage is value.storage for p in places)
    return isinstance(value, Scalar) and any(p is value for p in places)


def _kept_elsewhere(old: Any, path: Path, block: _Block, now: dict[Path, Any], is_place: bool) -> bool:
    """Whether somebody who had the value before the block, a caller or another name, may use it after it."""
    if any(v is old and p != path for p, v in block.names.items()):
        return True
    if isinstance(old, Tile) and any(t is not None and t is not old and t.tick < block.tick for t in (r() for r in old.storage.tiles)):
        return True
    # Known are block.names, variables of carry() and of this function; names of the frame stand in `now` too.
    return sys.getrefcount(old) > 5 + is_place + 2 * builtins.sum(v is old for v in now.values())


# ---- Scalars ----
class Condition:
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


class Scalar:
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
        if isinstance(other, Tile):
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
        if isinstance(o, Tile):
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
    return repr(x) if x is None or isinstance(x, (Tile, Scalar, Tensor, numbers.Number, str)) else f"a {type(x).__name__}"


def scalar(value: int | float) -> Scalar:
    """A Python number as a value of the chip, for what changes in a loop."""
    return _duplicate(value) if isinstance(value, Scalar) else _scalar(value)


def to_float(x: Any) -> Scalar:
    """An integer scalar as a float."""
    s = _scalar(x)
    return s if s.kind == "float" else Scalar(s.tracer, s.tracer.mark().scalar_op("i2f", s.reg, 0), "float")


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


def _two(a: Any, b: Any, op: str, name: str) -> Scalar:
    x, y = _both(a, b)
    if x.kind == "float":
        raise x.tracer.error(f"{name} of float scalars, expected integers")
    return Scalar(x.tracer, x.tracer.mark().scalar_op(op, x.reg, y.reg), "int")


# ---- Control ----
class range:  # noqa: A001 - it takes the builtin's place
    """for i in tl.range(end), (begin, end) or (begin, end, step): a loop of the chip, recorded once.

    stages: the loads of an innermost loop get that many buffers, so that those of the next iterations overlap with the work of
    this one. break and return are not possible inside.
    """

    def __init__(self, begin: Any, end: Any = None, step: Any = 1, *, stages: int = 1):
        t = _tracer()
        self.bounds = [_int(x, "a bound of tl.range") for x in ((0, begin, step) if end is None else (begin, end, step))]
        self.stages = _plain(stages, "stages of tl.range")
        if not 1 <= stages <= 8:
            raise t.error(f"stages={stages}, expected 1 to 8")
        if isinstance(step, int) and step <= 0:
            raise t.error(f"step {step}, expected above 0; a loop downwards counts up and subtracts")

    def __iter__(self) -> Iterator[Scalar]:
        frame = sys._getframe(1)
        flow = _flow(frame.f_code)
        here = flow.get(frame.f_lasti)
        loop = flow.get(here[1][0]) if here is not None and here[0].opname == "GET_ITER" and here[1] else None
        if loop is None or loop[0].opname not in ("FOR_ITER", "EXTENDED_ARG"):
            raise _tracer().error("tl.range stands alone in a for statement, not in a comprehension, list(), zip() or enumerate(): it is "
                                  "recorded once, and runs on the chip")
        begin, end, step = self.bounds
        return _loop(_tracer(), begin, end, step, self.stages)


def _loop(t: Tracer, begin: Any, end: Any, step: Any, stages: int) -> Iterator[Scalar]:
    """What the for statement takes its only value from."""
    frame = sys._getframe(1)
    block = _Block(t.now(), True, t.line())
    block.stages = stages
    t.open(block, frame)
    b = t.mark()
    simple = step == 1
    if simple:
        reg = b.begin_loop(begin, end, 1)
        index = Scalar(t, reg, "int")
    else:
        # Stages need a counter in steps of 1.
        reg = b.begin_loop(0, b.scalar_op("cdiv", b.scalar_op("sub", end, begin), step), 1)
        index = Scalar(t, b.scalar_op("add", b.scalar_op("mul", reg, step), begin), "int")
    block.counter_reg = reg
    if simple:
        del begin, end, step  # LOOP has read them: their registers are free
    try:
        yield index
    except GeneratorExit:
        block.left = t.line()
        return
    t.close(block, frame)
    if simple and any(v is index and _live(frame, path[0]) for path, v in _names(frame).items()):
        # It has counted one further than the last iteration.
        index.reg = t.mark().scalar_op("sub", reg, 1)


class when:
    """with tl.when(a < b): what stands inside runs only where the condition holds. Nest them for "and"."""

    def __init__(self, condition: Condition):
        t = _tracer()
        if not isinstance(condition, Condition):
            raise t.error(f"tl.when of {_kind(condition)}, expected a comparison of scalars such as i < n; conditions of Python values "
                          "are plain \"if\"s")
        self.condition, self.tracer = condition, t
        self.block = _Block(t.now(), False, t.line())

    def __enter__(self) -> None:
        t, c, frame = self.tracer, self.condition, sys._getframe(1)
        leaves = _leaves("".join(linecache.getlines(frame.f_code.co_filename)), frame.f_lineno)
        if leaves is not None:
            raise t.error(f"{leaves[0]} inside tl.when, whose body is recorded whether the condition holds or not; put what follows into "
                          "a tl.when of the opposite condition (~condition)", leaves[1] if frame.f_code.co_filename == t.file else 0)
        t.open(self.block, frame)
        t.mark().begin_when(c.a.reg, c.op, c.b.reg)

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.tracer.close(self.block, sys._getframe(1))


@functools.lru_cache(maxsize=8)
def _with_statements(source: str) -> dict[int, ast.With]:
    try:
        return {n.lineno: n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.With)}
    except SyntaxError:
        return {}


def _leaves(source: str, line: int) -> tuple[str, int] | None:
    """The statement that leaves the with statement at this line early, and its own line."""
    statement = _with_statements(source).get(line)
    return None if statement is None else _leaving(statement, False)


def _leaving(node: ast.AST, in_loop: bool) -> tuple[str, int] | None:
    if isinstance(node, (ast.FunctionDef, ast.Lambda, ast.ClassDef)):
        return None
    if isinstance(node, ast.Return) or isinstance(node, (ast.Break, ast.Continue)) and not in_loop:
        return type(node).__name__.lower(), node.lineno
    inside = in_loop or isinstance(node, (ast.For, ast.While))
    return next((f for n in ast.iter_child_nodes(node) if (f := _leaving(n, inside)) is not None), None)


def device_assert(condition: Condition, code: int = 1) -> None:
    """Ends the launch with KernelError (TRAP code) where the condition does not hold."""
    t = _tracer()
    if not isinstance(condition, Condition):
        raise t.error(f"device_assert of {_kind(condition)}, expected a comparison of scalars such as i < n")
    if not 0 <= _plain(code, "the code of device_assert") < 2**32:
        raise t.error(f"code {code} of device_assert, expected 0 to 2**32 - 1")
    b = t.mark()
    b.begin_when(condition.a.reg, _OPPOSITE[condition.op], condition.b.reg)
    b.trap(code)
    b.end_block()


def static_assert(condition: bool, message: str = "") -> None:
    """Refuses to build the kernel where a condition of Python numbers does not hold."""
    if not condition:
        raise _tracer().error(f"static_assert failed{': ' + message if message else ''}")


# ---- Tensors ----
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


class _Extents(Sequence):
    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __repr__(self) -> str:
        return f"<shape of {self.tensor.name}>"

    def __len__(self) -> int:
        return self.tensor.ndim

    def __iter__(self) -> Iterator[Scalar]:
        return (self[k] for k in builtins.range(len(self)))

    def __getitem__(self, k: Any) -> Any:
        x = self.tensor
        if isinstance(k, slice):
            return tuple(self[n] for n in builtins.range(*k.indices(x.ndim)))
        if not -x.ndim <= _plain(k, f"the index of the shape of {x.name}") < x.ndim:
            raise x.tracer.error(f"shape[{k}] of {x!r}")
        return Scalar(x.tracer, x.tracer.mark().dim(x.handle, k % x.ndim), "int")


# ---- Tiles ----
class Tile:
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
        return sum(self, axis)

    def max(self, axis: int | None = None) -> Tile:
        """Over an axis, or over all."""
        return max(self, axis)

    def min(self, axis: int | None = None) -> Tile:
        """Over an axis, or over all."""
        return min(self, axis)

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


def _tile(x: Any, what: str = "a value") -> Tile:
    if isinstance(x, (Dot, Transposed)):
        x = x.resolved()
    if isinstance(x, Tile):
        if x.taken:
            raise x.tracer.error(f"{what}: this tile's accumulators were added to at line {x.taken}; use the result, or tl.copy() before")
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


def _broadcast(what: str, *tiles: Tile) -> tuple[int, int, int]:
    out = []
    for extents in ([x.rows for x in tiles], [x.columns for x in tiles]):
        large = {n for n in extents if n != 1}
        if len(large) > 1:
            raise _tracer().error(f"{what} of shapes {' and '.join(str(x.shape) for x in tiles)}, which do not broadcast")
        out.append(large.pop() if large else 1)
    return out[0], out[1], builtins.max(x.ndim for x in tiles)


def _expand(x: Tile, rows: int, columns: int) -> Tile:
    """Broadcast by a copy."""
    if (x.rows, x.columns) == (rows, columns):
        return x
    out = _new(rows, columns, float32, 2 if rows > 1 else x.ndim)
    b = x.tracer.mark()
    b.fill(out.handle, -0.0)  # the number that changes nothing when it is added
    b.binary("add", out.handle, out.handle, x.handle, False)
    return out


def _number_of(x: Any) -> Any:
    """NumPy's arrays of no dimensions are numbers."""
    return x.item() if type(x).__module__ == "numpy" and getattr(x, "ndim", 1) == 0 else x


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


def slice_tile(x: Tile, row: Any, column: Any, shape: Any) -> Tile:
    """The part of this shape from (row, column) on, which may be scalars: the same memory."""
    tile = _tile(x)
    rows, columns, _ = _shape(shape)
    for at, n, whole in ((row, rows, tile.rows), (column, columns, tile.columns)):
        if n > whole or isinstance(at, int) and not 0 <= at <= whole - n:
            raise tile.tracer.error(f"a part of {rows} x {columns} from ({row!r}, {column!r}) on, of a tile of shape {tile.shape}")
    handle = tile.tracer.mark().slice(tile.handle, _int(row, "row"), _int(column, "column"), rows, columns)
    return Tile(tile.tracer, handle, tile.storage, rows, columns, tile.dtype, tile.ndim if rows == 1 else 2, tile.space)


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
    t.flush()
    out = _new(tile.rows, tile.columns, _kernel_dtype(dtype), 2)
    state.state.storage.version += 1
    t.mark().softmax_step(out.handle, tile.handle, state.state.handle, factor.reg)
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
_ELSEWHERE = {
    "constexpr": "constants are keyword-only parameters, after *", "atomic_add": "tl.store(..., add=True) adds, not atomically",
    "trans": "x.T is the transposed tile", "transpose": "x.T is the transposed tile", "matmul": "tl.dot(a, b), or a @ b",
    "static_range": "Python's range runs while recording", "broadcast_to": "operators broadcast", "astype": "x.to(dtype) converts",
    "power": "x * x, or tl.exp(tl.log(x) * p)", "pow": "x * x, or tl.exp(tl.log(x) * p)", "mean": "tl.sum(x, axis) / n",
    "concatenate": "store the parts one by one", "cat": "store the parts one by one", "expf": "tl.exp",
    "reshape": "tiles keep their shape; tl.load takes another one", "view": "tiles keep their shape; tl.load takes another one",
    "expand_dims": "(rows, 1) and (1, columns) broadcast", "make_block_ptr": "tl.load(array, coordinates, shape)",
    "absolute": "tl.abs", "amax": "tl.max", "amin": "tl.min", "printf": "tl.device_assert stops a kernel",
    "device_print": "tl.device_assert stops a kernel", "size": "x.rows * x.columns", "square": "x * x", "negative": "-x",
}


def _instead(name: str) -> str:
    """What to write instead of a function that is not there."""
    if name in __all__:
        return f"; use tl.{name}"
    if name in _ELSEWHERE:
        return f"; {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, __all__, 1)
    return f"; did you mean tl.{near[0]}?" if near else "; help(jalapeno.language) lists what there is"


def __getattr__(name: str) -> Any:
    if name.startswith("_") or getattr(_active, "tracer", None) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    raise _tracer().error(f"there is no tl.{name}" + _instead(name))


_HIDDEN = ("annotations", "Any", "Iterator", "Sequence", "Retrace", "Tracer", "Path", "Shape", "CompileError", "CodeType", "FrameType",
           "FunctionType", "ModuleType")
__all__ = [n for n, v in list(globals().items()) if not n.startswith("_") and n not in _HIDDEN and not isinstance(v, ModuleType)]

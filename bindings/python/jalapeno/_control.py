"""Loops and conditions of the chip (range, when), which are recorded once, and what they carry by value from one iteration to the next.

Knows values only as what lies somewhere and can be copied; not how they compute.
"""
from __future__ import annotations

import linecache
import numbers
import sys
from types import FrameType
from typing import Any, Iterator

from ._frames import Path, _flow, _leaves, _live, _names, _rebind, _text
from ._recording import Retrace, Tracer, _Block, _Storage, _tracer
from ._scalars import Condition, Scalar, _int, _kind, _plain, _scalar
from ._tiles import Dot, Tile, Transposed, _duplicate, _tile

_ABSENT = object()


class range:  # noqa: A001 - it takes the builtin's place
    """for i in tl.range(end), (begin, end) or (begin, end, step): a loop of the chip, recorded once.

    stages: the loads of an innermost loop get that many buffers, so that those of the next iterations overlap with the work of
    this one. break and return are not possible inside.
    """

    def __init__(self, begin: Any, end: Any = None, step: Any = 1, *, stages: int = 1):
        t = _tracer()
        self.bounds = (0, begin, step) if end is None else (begin, end, step)
        for x in self.bounds:
            _int(x, "a bound of tl.range")
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
        begin, end, step = (_int(x, "a bound of tl.range") for x in self.bounds)
        return _loop(_tracer(), begin, end, step, self.stages)


def _loop(t: Tracer, begin: Any, end: Any, step: Any, stages: int) -> Iterator[Scalar]:
    """What the for statement takes its only value from."""
    frame = sys._getframe(1)
    block = _Block(t.now(), True, t.line())
    block.stages = stages
    _open(t, block, frame)
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
    _close(t, block, frame)
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
        _open(t, self.block, frame)
        t.mark().begin_when(_scalar(c.a).reg, c.op, _scalar(c.b).reg)

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            _close(self.tracer, self.block, sys._getframe(1))
            self.tracer.conditions.append((self.block.tick, self.tracer.now(), self.block.line))


# ---- Blocks and what they carry ----
def _open(t: Tracer, block: _Block, frame: FrameType) -> None:
    t.flush()
    t.opened += 1
    block.number = t.opened
    block.names = _known_names(t, frame)
    for path, value in block.names.items():
        if ("own", block.number, path) in t.known:
            _rebind(frame, path, _duplicate(value))
    block.names = _known_names(t, frame)
    block.tick = t.now()
    t.blocks.append(block)


def _known_names(t: Tracer, frame: FrameType) -> dict[Path, Any]:
    """Names and what they hold. What was made under a condition that is over cannot be used: its name is as good as none."""
    names = _names(frame)
    lost = {path for path, value in names.items() if _lost(t, value)}
    lost |= {(*path[:-1], ("len",)) for path in lost}
    return {path: value for path, value in names.items() if path not in lost}


def _lost(t: Tracer, value: Any) -> bool:
    if isinstance(value, Transposed):
        return _lost(t, value.base)
    if isinstance(value, Condition):
        return _lost(t, value.a) or _lost(t, value.b)
    return isinstance(value, (Scalar, Tile)) and t.condition_of(value.tick) != 0


def _close(t: Tracer, block: _Block, frame: FrameType) -> None:
    t.flush()
    if not t.blocks or t.blocks[-1] is not block:
        raise t.left()
    _carry(t, block, frame)
    t.mark().end_block()
    t.blocks.pop()
    block.names.clear()
    held, block.held = block.held, []
    for storage in [h for h in held if isinstance(h, _Storage)]:
        if not t.released(storage.tick, storage):
            storage.give()


def _carry(t: Tracer, block: _Block, frame: FrameType) -> None:
    """What a name holds at the end of a block, where it held something else at its begin: the next iteration reads the old
    place, so the new value is copied there, and the name stands for that place again."""
    now = _names(frame)
    live = {name: _live(frame, name) for name in {path[0] for path in now}}
    moves: list[tuple[Path, Any, Any]] = []
    for path, old in block.names.items():
        new = now.get(path, _ABSENT)
        if new is old or new is _ABSENT or not live[path[0]]:
            continue
        place, value = _carried(t, _text(path), old, new, "loop" if block.loop else "condition")
        if place is value:
            continue
        if ("own", block.number, path) not in t.known and _kept_elsewhere(old, path, block, now, place is old):
            t.learned.add(("own", block.number, path))
        moves.append((path, place, value))
    if t.learned:
        raise Retrace(*t.learned)
    if not moves:
        return
    # Values that lie in places which now change are saved first: "a, b = b, a + b", or "previous = x; x = x + 1".
    changing = [place for _, place, _ in moves]
    moves = [(path, place, _duplicate(value) if _lies_in(value, changing) else value) for path, place, value in moves]
    moving = {path for path, _, _ in moves}
    kept = [(path, value) for path, value in now.items()
            if path not in moving and live[path[0]] and _lies_in(value, changing) and not _lost(t, value)]
    for path, value in kept:
        _rebind(frame, path, _duplicate(value))
    for path, place, value in moves:
        if isinstance(place, Scalar):
            t.mark().assign(place.reg, value.reg)
        else:
            t.mark().copy(place.handle, value.handle, False)
            place.storage.version += 1
            place.taken = 0
        _rebind(frame, path, place)


def _carried(t: Tracer, name: str, old: Any, new: Any, kind: str) -> tuple[Any, Any]:
    """The place a changed value goes to, and the value; the same object twice when it is there already."""
    if isinstance(old, Scalar) and isinstance(new, (Scalar, int, float)):
        scalar_ = _scalar(float(new)) if old.kind == "float" and isinstance(new, int) else _scalar(new)
        if scalar_.kind != old.kind:
            raise t.error(f"{name} changes from {old.kind} to {scalar_.kind} in the {kind}; use tl.to_float() or tl.to_int()")
        return old, scalar_
    if not isinstance(old, Tile):
        if old.__class__ is new.__class__ and not isinstance(old, (Scalar, Condition)) and (old == new or old != old):
            return old, old
        if name.endswith("(len)"):
            raise t.error(f"{name[:-5]} grows or shrinks in a {kind} of the chip, which is recorded once; it holds the same tiles "
                          "in every iteration")
        what = "scalar" if isinstance(old, Scalar) else "comparison" if isinstance(old, Condition) else repr(old)
        if isinstance(old, numbers.Number) and not isinstance(old, bool):
            raise t.error(f"{name} is a Python number that changes in a {kind} of the chip, which is recorded once; "
                          f"make it a value of the chip before it: {name} = tl.scalar({old!r})")
        raise t.error(f"{name} is {'a ' * isinstance(old, (Scalar, Condition))}{what} before the {kind} and {_kind(new)} at its "
                      f"end; the {kind} is recorded once, so it must be the same kind of value")
    if type(old) is Transposed:
        raise t.error(f"{name} is a transposed tile before the {kind} and changes in it; start with tl.copy(x.T)")
    if not isinstance(new, Tile):
        raise t.error(f"{name} is a tile before the {kind} and {_kind(new)} at its end; the {kind} is recorded once, so it must "
                      "be the same kind of value")
    place, value = _tile(old) if type(old) is Dot else old, _tile(new)
    if value.storage is place.storage and value.handle is place.handle:
        return value, value
    if (value.rows, value.columns) != (place.rows, place.columns) or value.dtype is not place.dtype:
        raise t.error(f"{name} changes from {place!r} to {value!r} in the {kind}; it must keep shape and type "
                      f"(x.to({place.dtype.name}) converts)")
    return place, value


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
    return sys.getrefcount(old) > 5 + is_place + 2 * sum(v is old for v in now.values())

"""Recording one kernel: the builder, the place in the user's file, which memory is free, and which blocks are open.

Knows memory by size and blocks by their begin and end; not what values there are, how they compute, or what a block carries.
"""
from __future__ import annotations

import sys
import threading
import weakref
from types import CodeType, FrameType
from typing import Any

from ._core import tile as _t
from ._frames import Path
from .dtypes import DType
from .errors import CompileError

_active = threading.local()


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
    """Records one kernel."""

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
        self.conditions: list[tuple[int, int, int]] = []  # begin, end and line of those that are closed
        self.opened = 0
        self.blocks: list[_Block] = []
        self.free: dict[str, list[tuple[int, Any]]] = {"spm": [], "acc": []}
        self.pending: list[Any] = []  # products (Dot) that nothing has used yet
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
        """The builder, told which line comes next."""
        self.at = self.line()
        self.builder.at(self.at)
        return self.builder

    def error(self, message: str, line: int = 0) -> CompileError:
        """A CompileError at the line that is being recorded, or at `line`."""
        return CompileError(f"kernel {self.name}: {message}", self.file, line or self.line())

    def now(self) -> int:
        """The next moment of recording."""
        self.tick += 1
        return self.tick

    # -- Memory --
    def allocate(self, dtype: DType, rows: int, columns: int, space: str) -> tuple[Any, _Storage]:
        """Memory for a tile: what is free and large enough, else new; (handle, storage)."""
        size = -(-dtype.itemsize * columns * rows // 64) * 64
        full = self.used[space] + size > self.limits[space]
        # Large pieces are left to large tiles while there is room.
        best = min((n for n, _ in self.free[space] if size <= n and (n <= 2 * size or full)), default=None)
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
        """Counts memory; CompileError naming the largest tiles when there is no more."""
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
    def left(self) -> CompileError:
        """The error for a loop that break or return left open."""
        block = self.blocks[-1]
        return self.error("the loop is left by break or return, which tl.range does not allow; it runs on the chip, and is recorded once",
                          block.left or block.line)

    def condition_of(self, tick: int) -> int:
        """The line of the closed tl.when in which something was made at this tick; 0 for none."""
        return next((line for begin, end, line in self.conditions if begin < tick < end), 0)

    def known_here(self, value: Any) -> None:
        """Refuses a value that was made where a condition held, after that condition."""
        line = self.condition_of(value.tick)
        if line:
            raise self.error(f"{value!r} was made inside the tl.when of line {line} and is used after it, where nobody knows whether "
                             "it was made; give its name a value before (tl.zeros, tl.scalar) and change that inside")

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
        self.tiles: list[weakref.ref[Any]] = []

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

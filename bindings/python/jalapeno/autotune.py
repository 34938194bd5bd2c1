"""Choosing a kernel's constants by measuring: tile sizes, stages, whatever its keyword-only parameters are.

    tuned = jal.autotune(matmul, {"BM": [64, 128, 256], "BN": [128, 256], "STAGES": [1, 2]}, clock="modelled")
    tuned[lambda c: (jal.cdiv(n, c["BN"]), jal.cdiv(m, c["BM"]))](a, b, c)   # measures once for these types and shapes
    print(tuned.choice(a, b, c))
"""
from __future__ import annotations

import itertools
import statistics
import threading
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Sequence

from .array import Array
from .errors import CompileError, KernelError
from .kernel import JitKernel

Constants = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One set of constants: its time, or why it has none."""

    constants: Constants
    ns: float | None
    reason: str = ""


@dataclass(frozen=True)
class Choice:
    """The best constants for some types and shapes. clock says whose time decided."""

    constants: Constants
    ns: float
    clock: str
    trials: tuple[Trial, ...]

    def __str__(self) -> str:
        said = ", ".join(f"{k}={v}" for k, v in self.constants.items())
        lines = [f"{said}: {self.ns / 1e3:,.1f} us ({self.clock}), best of {len(self.trials)}"]
        for t in sorted(self.trials, key=lambda t: (t.ns is None, t.ns or 0)):
            what = ", ".join(f"{k}={v}" for k, v in t.constants.items())
            lines.append(f"  {what}: " + (f"{t.ns / 1e3:,.1f} us" if t.ns is not None else t.reason))
        return "\n".join(lines)


class Tuned:
    """A kernel whose constants are chosen at the first launch with each combination of types and shapes. See autotune()."""

    def __init__(self, kernel: JitKernel, sets: Sequence[Constants], clock: str, repeat: int):
        self.kernel, self.sets, self.clock, self.repeat = kernel, list(sets), clock, repeat
        self._choices: dict[tuple, Choice] = {}
        self._lock = threading.RLock()

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, stream: Any = None, **constants: Any) -> None:
            best = self._choose(grid, args, constants)
            self.kernel[grid](*args, stream=stream, **{**constants, **best.constants})
        return launch

    def choice(self, *args: Any) -> Choice:
        """What was chosen for arguments of these types and shapes; KeyError before the first launch with them."""
        for key, choice in self._choices.items():
            if key[0] == _key(args):
                return choice
        raise KeyError(f"kernel {self.kernel.name} has not been tuned for these types and shapes; launch it once")

    def _choose(self, grid: Any, args: tuple, constants: Constants) -> Choice:
        key = (_key(args), tuple(sorted(constants.items())))
        with self._lock:
            if key not in self._choices:
                self._choices[key] = self._measure(grid, args, constants)
            return self._choices[key]

    def _measure(self, grid: Any, args: tuple, constants: Constants) -> Choice:
        trials = []
        for one in self.sets:
            # On copies: a trial must not change what the caller sees.
            own = [a.copy() if isinstance(a, Array) else a for a in args]
            try:
                reports = [self.kernel.report(grid, *own, **{**constants, **one})
                           for _ in range(1 if self.clock == "modelled" else self.repeat)]
            except (CompileError, KernelError, ValueError) as e:
                trials.append(Trial(one, None, str(e).splitlines()[0]))
                if isinstance(e, KernelError):
                    own[0].device.reset()
                continue
            ns = reports[0].device_ns if self.clock == "modelled" else statistics.median(r.host_ns for r in reports)
            said = "this machine" if self.clock == "host" else (
                f"modelled chip, {reports[0].config}" + (", assumed" if reports[0].assumed else ""))
            trials.append(Trial(one, float(ns)))
        good = [t for t in trials if t.ns is not None]
        if not good:
            raise CompileError(f"kernel {self.kernel.name}: none of {len(trials)} sets of constants works; the first: {trials[0].reason}")
        best = min(good, key=lambda t: t.ns or 0)
        return Choice(best.constants, best.ns or 0, said, tuple(trials))


def _key(args: tuple) -> tuple:
    return tuple((a.dtype_name, a.shape) if isinstance(a, Array) else type(a).__name__ for a in args)


def autotune(kernel: JitKernel, space: Mapping[str, Sequence[Any]] | Sequence[Constants], *, clock: str = "modelled",
             repeat: int = 5) -> Tuned:
    """The kernel with constants chosen by trying them.

    space: values for each constant (all combinations are tried), or a list of sets. clock: "modelled" (the chip's time; on an
    emulated chip its model, which says nothing about this machine) or "host" (this machine's, the median of `repeat` launches; on
    an emulated chip it says nothing about the chip). Sets that cannot be built are left out and told in Choice.trials. The first
    launch with new types or shapes blocks while it measures, on copies of its arrays; nothing else should run on the device then.
    """
    if not isinstance(kernel, JitKernel):
        raise TypeError(f"autotune of a {type(kernel).__name__}, expected a kernel made by @jalapeno.kernel")
    if clock not in ("modelled", "host"):
        raise ValueError(f"clock {clock!r}, expected modelled or host")
    if isinstance(space, Mapping):
        sets = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    else:
        sets = [dict(s) for s in space]
    if not sets:
        raise ValueError("autotune: no constants to try")
    for n in {n for s in sets for n in s}:
        if n not in kernel.constants:
            raise ValueError(f"autotune: kernel {kernel.name} has no constant {n}; it has {', '.join(kernel.constants) or 'none'}")
    return Tuned(kernel, sets, clock, repeat)

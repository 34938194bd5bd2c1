"""@jal.kernel: from a Python function to a kernel on the chip, recorded once for each combination of argument types.

>>> import numpy as np, jalapeno as jal
>>> from jalapeno import language as tl
>>> @jal.kernel
... def scale(x, y, factor, *, BLOCK=1024):
...     i = tl.program_id(0) * BLOCK
...     tl.store(y, i, tl.load(x, i, BLOCK) * factor)
>>> x = jal.array(np.arange(3000, dtype=np.float32)); y = jal.empty(3000)
>>> scale[3](x, y, 2.0)
>>> y[2999].item()
5998.0
"""
from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sys
import tempfile
import threading
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np

from . import _core, language
from .array import Array, _of_numpy, array, default_device, empty
from .dtypes import DType, dtype as as_dtype
from ._core import Device, Kernel, Module, PreparedLaunch, Stream
from .errors import CompileError, IllegalStateError
from .report import Report, measure

_lock = threading.RLock()


@dataclass(frozen=True)
class Compiled:
    """One specialisation: a module of one kernel, and what it uses."""

    name: str
    image: bytes
    spm_bytes: int
    acc_bytes: int
    instructions: int
    from_disk: bool = False

    @property
    def assembly(self) -> str:
        """The instructions as text, each with the Python line it comes from (line=)."""
        return _core.tile.disassemble(self.image)


class JitKernel:
    """A function of the tile language. kernel[grid](*arguments) launches it.

    Positional parameters are arguments of the launch: arrays, ints and floats. Keyword-only parameters (after *) are constants:
    Python values that are fixed when the kernel is recorded. grid is an int, a tuple of up to three, or a function of the
    constants (a dict) that returns one.
    """

    def __init__(self, function: Callable[..., None], name: str | None = None):
        self.function = function
        self.name = name or function.__name__
        self.parameters: list[str] = []
        self.defaults: dict[str, Any] = {}
        self.constants: list[str] = []
        for p in inspect.signature(function).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise CompileError(f"kernel {self.name}: parameter *{p.name}; a kernel's parameters are named one by one")
            if p.kind is p.KEYWORD_ONLY:
                self.constants.append(p.name)
                if p.default is not p.empty:
                    self.defaults[p.name] = p.default
            elif p.default is not p.empty:
                raise CompileError(f"kernel {self.name}: parameter {p.name} has a default; arguments of a launch are all given. "
                                   "Constants stand after * in the parameter list")
            else:
                self.parameters.append(p.name)
        self._compiled: dict[tuple, Compiled] = {}
        self._loaded: dict[tuple, Kernel] = {}
        functools.update_wrapper(self, function)

    # ---- Launching ----
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def __call__(self, *_: Any, **__: Any) -> None:
        if getattr(language._active, "tracer", None) is not None:
            raise language._tracer().error(f"kernel {self.name} is called inside another kernel; call a plain Python function instead")
        raise TypeError(f"{self.name}(...): a kernel needs a grid: {self.name}[grid](...)")

    def _launch(self, grid: Any, /, *args: Any, stream: Stream | None = None, **constants: Any) -> None:
        # The common call costs one look-up: no constants, types seen before.
        if not constants:
            device, signature = _core.signature(args)
            kernel = self._loaded.get((device, signature))
            if kernel is not None:
                _core.launch(kernel, grid if grid.__class__ is int or not callable(grid) else grid(dict(self.defaults)), args, stream)
                return
        kernel, bound = self._specialise(args, constants)
        _core.launch(kernel, grid(bound) if callable(grid) else grid, args, stream)

    def prepare(self, grid: Any, *args: Any, **constants: Any) -> PreparedLaunch:
        """The launch with everything fixed: its launch(stream=None) writes one packet. Keeps the arrays alive."""
        kernel, bound = self._specialise(args, constants)
        return kernel.prepare(grid(bound) if callable(grid) else grid, *args)

    # ---- Building ----
    def _bind(self, constants: dict[str, Any]) -> dict[str, Any]:
        bound = {**self.defaults, **constants}
        unknown = [n for n in bound if n not in self.constants]
        if unknown:
            raise TypeError(f"kernel {self.name} has no constant {', '.join(unknown)}; it has {', '.join(self.constants) or 'none'}")
        missing = [n for n in self.constants if n not in bound]
        if missing:
            raise TypeError(f"kernel {self.name}: constant {', '.join(missing)} is not given")
        return bound

    def _sorts(self, args: Iterable[Any]) -> tuple[tuple[str, int], ...]:
        given = list(args)
        if len(given) != len(self.parameters):
            raise TypeError(f"kernel {self.name} takes {len(self.parameters)} arguments ({', '.join(self.parameters)}), "
                            f"got {len(given)}")
        out = []
        for name, a in zip(self.parameters, given):
            if isinstance(a, Array):
                if not a.dtype.computes:
                    raise TypeError(f"kernel {self.name}, argument {name}: is {a.dtype.name}, which kernels do not take")
                out.append((a.dtype.name, max(a.ndim, 1)))
            elif isinstance(a, np.ndarray):
                raise TypeError(f"kernel {self.name}, argument {name}: is a NumPy array; jalapeno.array(x) copies it to the device")
            elif isinstance(a, (bool, int, np.integer)):
                out.append(("int", 0))
            elif isinstance(a, (float, np.floating)):
                out.append(("float", 0))
            else:
                raise TypeError(f"kernel {self.name}, argument {name}: is a {type(a).__name__}, expected an Array, an int or a float")
        return tuple(out)

    def _specialise(self, args: tuple, constants: dict[str, Any]) -> tuple[Kernel, dict[str, Any]]:
        bound = self._bind(constants)
        sorts = self._sorts(args)
        device = next((a.device for a in args if isinstance(a, Array) and a.device is not None), None) or default_device()
        key = (id(device), sorts, _hashable(bound))
        kernel = self._loaded.get(key)
        if kernel is None or kernel.device is not device:
            compiled = self._compile(sorts, bound, device)
            self._loaded = {k: v for k, v in self._loaded.items() if not v.device.closed}
            kernel = Module(device, compiled.image)[self.name]
            self._loaded[key] = kernel
        if not constants:
            self._loaded[_core.signature(args)] = kernel
        return kernel, bound

    def compile(self, *args: Any, device: Device | None = None, **constants: Any) -> Compiled:
        """The specialisation for these arguments, without a launch. An argument is given as itself or as its type: a DType (an array
        of one dimension), (DType, dimensions), int or float."""
        examples: list[tuple[str, int]] = []
        for a in args:
            if a is int or a is float:
                examples.append((a.__name__, 0))
            elif isinstance(a, DType):
                examples.append((a.name, 1))
            elif isinstance(a, tuple):
                examples.append((as_dtype(a[0]).name, int(a[1])))
            else:
                examples += self._sorts_of_one(a)
        if len(examples) != len(self.parameters):
            raise TypeError(f"kernel {self.name} takes {len(self.parameters)} arguments ({', '.join(self.parameters)}), "
                            f"got {len(examples)}")
        return self._compile(tuple(examples), self._bind(constants), device or default_device())

    def _sorts_of_one(self, a: Any) -> list[tuple[str, int]]:
        if isinstance(a, Array):
            return [(a.dtype.name, max(a.ndim, 1))]
        if isinstance(a, (bool, int, np.integer)):
            return [("int", 0)]
        if isinstance(a, (float, np.floating)):
            return [("float", 0)]
        raise TypeError(f"kernel {self.name}: a {type(a).__name__} as an argument, expected an Array, a DType, int or float")

    def _compile(self, sorts: tuple, bound: dict[str, Any], device: Device) -> Compiled:
        p = device.properties
        limits = (p["spm_bytes"], p["acc_bytes"])
        key = (sorts, _hashable(bound), limits)
        with _lock:
            found = self._compiled.get(key)
            if found is None:
                text = cache_key(self, sorts, bound, limits)
                found = _read_cache(text) if text is not None else None
                if found is None:
                    found = self._record(sorts, bound, *limits)
                    if text is not None:
                        _write_cache(text, found)
                self._compiled[key] = found
            return found

    def _record(self, sorts: tuple, bound: dict[str, Any], spm_bytes: int, acc_bytes: int) -> Compiled:
        code = self.function.__code__
        if getattr(language._active, "tracer", None) is not None:
            raise CompileError(f"kernel {self.name} is built while another kernel is recorded")
        accumulators: frozenset[int] = frozenset()
        while True:
            tracer = language.Tracer(self.name, code.co_filename, code.co_firstlineno, spm_bytes, acc_bytes, accumulators)
            language._active.tracer = tracer
            try:
                finished = self._trace(tracer, sorts, bound)
                break
            except language.Retrace as again:
                accumulators |= {again.ordinal}
            except _core.tile.BuildError as e:
                raise CompileError(str(e), code.co_filename, tracer.line()) from None
            finally:
                tracer.finished = True
                language._active.tracer = None
        return Compiled(self.name, _core.tile.write_module([finished]), finished.spm_bytes, finished.acc_bytes, finished.instructions)

    def _trace(self, tracer: language.Tracer, sorts: tuple, bound: dict[str, Any]) -> Any:
        values: list[Any] = []
        b = tracer.builder
        for name, (kind, rank) in zip(self.parameters, sorts):
            if rank:
                values.append(language.Tensor(tracer, name, b.tensor(name, kind, rank), as_dtype(kind), rank))
            else:
                values.append(language.Scalar(tracer, b.scalar(name, "f32" if kind == "float" else "i64"), kind))
        result = self.function(*values, **bound)
        if result is not None:
            raise tracer.error(f"the kernel returns {type(result).__name__}; results are stored into array arguments")
        if tracer.blocks:
            raise CompileError(f"kernel {self.name}: the loop is left by break or return, which tl.range does not allow", tracer.file,
                               tracer.blocks[-1].line)
        del values
        tracer.finished = True
        return b.finish()

    # ---- Looking at it ----
    def report(self, grid: Any, *args: Any, **constants: Any) -> Report:
        """Launches once and tells the modelled time of each engine, traffic, energy and the place under the roofline. Nothing else
        may run on the device meanwhile."""
        kernel, bound = self._specialise(args, constants)
        launch = grid(bound) if callable(grid) else grid
        stream = _core.current_stream(kernel.device)
        return measure(kernel, lambda: _core.launch(kernel, launch, args, stream), stream)

    def simulate(self, grid: Any, *args: Any, check: str = "races,uninit,oob", **constants: Any) -> Report:
        """Runs the kernel on NumPy arrays on an emulated chip of its own that checks every access: races between engines, reads of
        scratchpad nothing wrote, boxes outside their arrays. Arrays are changed in place, as the kernel does it. Raises KernelError
        with the Python line of what it found."""
        known = ("races", "uninit", "oob")
        wrong = [c for c in check.split(",") if c and c not in known]
        if wrong:
            raise ValueError(f"check {wrong[0]!r}, expected some of {','.join(known)}")
        size = sum(a.nbytes for a in args if isinstance(a, np.ndarray))
        uri = f"emu:?hbm={max(256, 2 * (size >> 20) + 128)}M" + (f"&check={check}" if check else "")
        with Device(uri) as device:
            moved = []
            for name, a in zip(self.parameters, args):
                if isinstance(a, Array):
                    raise TypeError(f"simulate: argument {name} is an Array; it takes NumPy arrays (bits of {a.dtype.name}: .numpy(raw=True))")
                moved.append(array(a, device=device) if isinstance(a, np.ndarray) else a)
            moved += args[len(moved):]
            report = self.report(grid, *moved, **constants)
            for a, there in zip(args, moved):
                if isinstance(a, np.ndarray) and a.flags.writeable:
                    a[...] = there.numpy(raw=True).view(a.dtype)
            del moved, there
        return report


def kernel(function: Callable[..., None] | None = None, *, name: str | None = None) -> Any:
    """Makes a kernel of a function of the tile language (jalapeno.language). See JitKernel."""
    if function is None:
        return lambda f: JitKernel(f, name)
    return JitKernel(function, name)


def _hashable(constants: dict[str, Any]) -> tuple:
    for n, v in constants.items():
        try:
            hash(v)
        except TypeError:
            raise TypeError(f"constant {n} is a {type(v).__name__}, expected something hashable (a number, a string, a tuple, a DType)") from None
    # 1, 1.0 and True are equal, and yet not the same constant.
    return tuple((n, type(v).__name__, v) for n, v in sorted(constants.items()))


# ---- The cache on disk ----
_FORMAT = 1


def cache_directory() -> Path | None:
    """Where built kernels are kept: JALAPENO_CACHE_DIR (empty: nowhere), else ~/.cache/jalapeno."""
    chosen = os.environ.get("JALAPENO_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jalapeno"


class _Uncacheable(Exception):
    pass


def cache_key(k: JitKernel, sorts: tuple, bound: dict[str, Any], limits: tuple) -> str | None:
    """All that the instructions depend on, as text; None when that cannot be told (then nothing is kept)."""
    seen: dict[str, Any] = {}

    def describe(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str, DType)):
            return repr(value)
        if isinstance(value, (tuple, list)):
            return [type(value).__name__, [describe(v) for v in value]]
        if isinstance(value, types.ModuleType):
            own = value.__name__.split(".")[0] == __package__
            return ["module", value.__name__, "" if own else str(getattr(value, "__version__", ""))]
        if isinstance(value, types.BuiltinFunctionType) or isinstance(value, type) and value.__module__ == "builtins":
            return ["builtin", value.__name__]
        if isinstance(value, types.FunctionType):
            if value.__module__.split(".")[0] == __package__:
                return ["own", value.__module__, value.__qualname__]
            return function(value)
        if isinstance(value, type) and value.__module__.split(".")[0] == __package__:
            return ["own", value.__module__, value.__qualname__]
        raise _Uncacheable(type(value).__name__)

    def function(f: types.FunctionType) -> Any:
        label = f"{f.__module__}.{f.__qualname__}"
        if label in seen:
            return ["seen", label]
        seen[label] = None
        try:
            lines, first = inspect.getsourcelines(f)
        except (OSError, TypeError):
            raise _Uncacheable("no source") from None
        names: dict[str, Any] = {}

        def codes(code: types.CodeType) -> Iterable[str]:
            yield from code.co_names
            for c in code.co_consts:
                if isinstance(c, types.CodeType):
                    yield from codes(c)

        for n in codes(f.__code__):
            if n in f.__globals__ and n not in names:
                names[n] = describe(f.__globals__[n])
        cells = {n: describe(c.cell_contents) for n, c in zip(f.__code__.co_freevars, f.__closure__ or ())}
        defaults = [describe(v) for v in (f.__defaults__ or ())]
        return ["function", label, f.__code__.co_filename, first, "".join(lines), names, cells, defaults]

    try:
        return json.dumps({"format": _FORMAT, "library": _core.version(), "isa": _core.tile.isa_version, "python": sys.version,
                           "package": _package_digest(), "name": k.name, "function": function(k.function), "arguments": sorts,
                           "constants": [[n, type(v).__name__, describe(v)] for n, v in sorted(bound.items())], "limits": limits},
                          sort_keys=True)
    except (_Uncacheable, ValueError):
        return None


@functools.cache
def _package_digest() -> str:
    """Of the code that makes kernels: another version makes others."""
    here = Path(__file__).parent
    parts = [(here / n).read_bytes() for n in ("language.py", "kernel.py", "dtypes.py")] + [Path(_core.__file__).read_bytes()]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _cache_file(key: str) -> Path | None:
    directory = cache_directory()
    return None if directory is None else directory / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".jk")


def _read_cache(key: str) -> Compiled | None:
    """What was kept under this key; the key in the file must be the same to the letter. A damaged file is as good as none."""
    path = _cache_file(key)
    if path is None:
        return None
    try:
        head, _, image = path.read_bytes().partition(b"\n")
        said = json.loads(head)
        if said["key"] != key or said["sha256"] != hashlib.sha256(image).hexdigest():
            return None
        return Compiled(said["name"], image, said["spm_bytes"], said["acc_bytes"], said["instructions"], True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(key: str, compiled: Compiled) -> None:
    path = _cache_file(key)
    if path is None:
        return
    head = json.dumps({"key": key, "sha256": hashlib.sha256(compiled.image).hexdigest(), "name": compiled.name,
                       "spm_bytes": compiled.spm_bytes, "acc_bytes": compiled.acc_bytes, "instructions": compiled.instructions})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Others see the whole file or none.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            f.write(head.encode() + b"\n" + compiled.image)
        os.replace(f.name, path)
    except OSError:
        pass  # a cache that cannot be written is no reason to fail

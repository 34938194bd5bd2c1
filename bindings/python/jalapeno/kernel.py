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

import dis
import functools
import hashlib
import inspect
import json
import os
import re
import sys
import tempfile
import threading
import traceback
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np

from . import _core, _recording, _scalars, language
from .array import Array, array, as_dtype_or_none, default_device
from .dtypes import DType, dtype as as_dtype, int64
from ._core import Device, Kernel, Module, PreparedLaunch, Stream
from .errors import CompileError
from .report import Report, measure

_lock = threading.RLock()
_RESERVED = ("stream", "device", "check")  # keywords of a launch, compile() and simulate()


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
    constants (a dict) that returns one. Globals and closures are read while recording, once for each combination of types and
    constants: what changes belongs into arguments or constants.
    """

    def __init__(self, function: Callable[..., None], name: str | None = None):
        if not inspect.isfunction(function):
            raise TypeError(f"@jalapeno.kernel of a {type(function).__name__}, expected a Python function")
        self.function: Any = function  # a FunctionType, which mypy would bind as a method
        self.name: str = name or function.__name__
        code = function.__code__

        def error(message: str) -> CompileError:
            return CompileError(f"kernel {self.name}: {message}", code.co_filename, code.co_firstlineno)

        if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
            raise error("a generator or async function; a kernel is a plain function, which is called once to record it")
        self.parameters: list[str] = []
        self.defaults: dict[str, Any] = {}
        self.constants: list[str] = []
        for p in inspect.signature(function).parameters.values():
            if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                raise error(f"parameter {p}; a kernel's parameters are named one by one")
            if p.name in _RESERVED:
                raise error(f"parameter {p.name}; that name is taken by launches ({', '.join(_RESERVED)})")
            if p.kind is p.KEYWORD_ONLY:
                self.constants.append(p.name)
                if p.default is not p.empty:
                    self.defaults[p.name] = p.default
            elif p.default is not p.empty:
                raise error(f"parameter {p.name} has a default; arguments of a launch are all given. Constants stand after * in the "
                            "parameter list")
            else:
                self.parameters.append(p.name)
        self._compiled: dict[tuple, Compiled] = {}
        self._loaded: dict[tuple, Kernel] = {}
        self._called: dict[tuple | None, tuple[Kernel, dict[str, Any]]] = {}
        functools.update_wrapper(self, function)

    # ---- Launching ----
    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return functools.partial(self._launch, grid)

    def __call__(self, *_: Any, **__: Any) -> None:
        if getattr(_recording._active, "tracer", None) is not None:
            raise _recording._tracer().error(f"kernel {self.name} is called inside another kernel; call a plain Python function instead")
        raise TypeError(f"{self.name}(...): a kernel needs a grid: {self.name}[grid](...)")

    def _launch(self, grid: Any, /, *args: Any, stream: Stream | None = None, **constants: Any) -> None:
        # The common call costs one look-up: types and constants seen before.
        key = _call_key(args, constants)
        found = self._called.get(key)
        if found is None:
            found = self._specialise(args, constants)
            if key is not None:
                self._called[key] = found
        kernel, bound = found
        _core.launch(kernel, grid if grid.__class__ is int or not callable(grid) else grid(dict(bound)), args, stream)

    def prepare(self, grid: Any, /, *args: Any, **constants: Any) -> PreparedLaunch:
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

    def _counted(self, args: tuple) -> tuple:
        if len(args) != len(self.parameters):
            raise TypeError(f"kernel {self.name} takes {len(self.parameters)} arguments ({', '.join(self.parameters)}), got {len(args)}")
        return args

    def _sort(self, name: str, a: Any) -> tuple[str, int]:
        """What the kernel is specialised for: the type and the number of dimensions of an argument, 0 for a number."""
        what = f"kernel {self.name}, argument {name}: "
        if isinstance(a, Array):
            if not a.dtype.computes:
                raise TypeError(f"{what}is {a.dtype.name}, which kernels do not take")
            if a.ndim > 4:
                raise TypeError(f"{what}has {a.ndim} dimensions, expected at most 4")
            return a.dtype.name, max(a.ndim, 1)
        if isinstance(a, np.ndarray):
            raise TypeError(f"{what}is a NumPy array; jalapeno.array(x) copies it to the device")
        if isinstance(a, (bool, int, np.integer)):
            return "int", 0
        if isinstance(a, (float, np.floating)):
            return "float", 0
        raise TypeError(f"{what}is a {type(a).__name__}, expected an Array, an int or a float")

    def _example(self, name: str, a: Any) -> tuple[str, int]:
        if a is int or a is float:
            return a.__name__, 0
        if not isinstance(a, (DType, tuple)):
            return self._sort(name, a)
        d, rank = (a, 1) if isinstance(a, DType) else (as_dtype(a[0]), int(a[1]))
        if not d.computes or not 1 <= rank <= 4:
            raise TypeError(f"kernel {self.name}, argument {name}: is {d.name} of {rank} dimensions, which kernels do not take")
        return d.name, rank

    def _specialise(self, args: tuple, constants: dict[str, Any], on: Device | None = None) -> tuple[Kernel, dict[str, Any]]:
        if getattr(_recording._active, "tracer", None) is not None:
            raise _recording._tracer().error(f"kernel {self.name} is launched inside another kernel; call a plain Python function instead")
        bound = self._bind(constants)
        sorts = tuple(map(self._sort, self.parameters, self._counted(args)))
        device = on or next((a.device for a in args if isinstance(a, Array) and a.device is not None), None) or default_device()
        key = (id(device), sorts, _hashable(bound))
        with _lock:
            kernel = self._loaded.get(key)
            if kernel is None or kernel.device is not device:
                compiled = self._compile(sorts, bound, device)
                self._loaded = {k: v for k, v in self._loaded.items() if not v.device.closed}
                self._called = {k: v for k, v in self._called.items() if not v[0].device.closed}
                kernel = Module(device, compiled.image)[self.name]
                self._loaded[key] = kernel
        return kernel, bound

    def compile(self, /, *args: Any, device: Device | None = None, **constants: Any) -> Compiled:
        """The specialisation for these arguments, without a launch. An argument is given as itself or as its type: a DType (an array
        of one dimension), (DType, dimensions), int or float."""
        sorts = tuple(map(self._example, self.parameters, self._counted(args)))
        return self._compile(sorts, self._bind(constants), device or default_device())

    def _compile(self, sorts: tuple, bound: dict[str, Any], device: Device) -> Compiled:
        p = device.properties
        limits = (p["spm_bytes"], p["acc_bytes"])
        key = (sorts, _hashable(bound), limits)
        with _lock:
            found = self._compiled.get(key)
            if found is None:
                text = None if cache_directory() is None else cache_key(self, sorts, bound, limits)
                found = _read_cache(text) if text is not None else None
                if found is None:
                    found = self._record(sorts, bound, *limits)
                    if text is not None:
                        _write_cache(text, found)
                self._compiled[key] = found
            return found

    def _record(self, sorts: tuple, bound: dict[str, Any], spm_bytes: int, acc_bytes: int) -> Compiled:
        code = self.function.__code__
        known: frozenset[tuple] = frozenset()
        while True:
            tracer = _recording.Tracer(self.name, code, spm_bytes, acc_bytes, known)
            _recording._active.tracer = tracer
            try:
                finished = self._trace(tracer, sorts, bound)
                break
            except _recording.Retrace as again:
                known = known.union(again.facts)
            except _core.tile.BuildError as e:
                # The builder says "kernel name, file:line: what is wrong".
                said = re.match(r"kernel .*?(?:, line |:)(\d+): (.*)", str(e), re.DOTALL)
                raise CompileError(f"kernel {self.name}: {said[2] if said else e}", code.co_filename,
                                   int(said[1]) if said else tracer.at) from None
            except (TypeError, OverflowError) as e:
                # What Python itself refuses, such as an operator that a tile does not have.
                lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == code.co_filename and f.lineno]
                raise CompileError(f"kernel {self.name}: {e}", code.co_filename, lines[-1] if lines else tracer.at) from e
            finally:
                tracer.finished = True
                _recording._active.tracer = None
        return Compiled(self.name, _core.tile.write_module([finished]), finished.spm_bytes, finished.acc_bytes, finished.instructions)

    def _trace(self, tracer: _recording.Tracer, sorts: tuple, bound: dict[str, Any]) -> Any:
        values: list[Any] = []
        b = tracer.builder
        for name, (kind, rank) in zip(self.parameters, sorts):
            if rank:
                values.append(language.Tensor(tracer, name, b.tensor(name, kind, rank), as_dtype(kind), rank))
            else:
                values.append(language.Scalar(tracer, b.scalar(name, "f32" if kind == "float" else "i64"), kind))
        result = self.function(*values, **bound)
        if tracer.blocks:
            raise tracer.left()
        if result is not None:
            lines = [i.positions.lineno for i in dis.get_instructions(self.function) if i.opname == "RETURN_VALUE" and i.positions]
            raise tracer.error(f"the kernel returns {_scalars._kind(result)}; results are stored into array arguments",
                               next((n for n in lines if n and n >= tracer.at), 0))
        del values
        tracer.finished = True
        return b.finish()

    # ---- Looking at it ----
    def report(self, grid: Any, /, *args: Any, **constants: Any) -> Report:
        """Launches once and tells the modelled time of each engine, traffic, energy and the place under the roofline. Nothing else
        may run on the device meanwhile."""
        return self._measure(grid, args, constants)

    def _measure(self, grid: Any, args: tuple, constants: dict[str, Any], on: Device | None = None) -> Report:
        kernel, bound = self._specialise(args, constants, on)
        launch = grid(bound) if callable(grid) else grid
        return measure(lambda: _core.launch(kernel, launch, args), kernel=kernel)

    def simulate(self, grid: Any, /, *args: Any, check: str = "races,uninit,oob", **constants: Any) -> Report:
        """Runs the kernel on NumPy arrays on an emulated chip of its own that checks every access: races between engines, reads of
        scratchpad nothing wrote, boxes outside their arrays. Arrays are changed in place, as the kernel does it. Raises KernelError
        with the Python line of what it found."""
        known = ("races", "uninit", "oob")
        wrong = [c for c in check.split(",") if c and c not in known]
        if wrong:
            raise ValueError(f"check {wrong[0]!r}, expected some of {','.join(known)}")
        for name, a in zip(self.parameters, args):
            if isinstance(a, Array):
                raise TypeError(f"simulate: argument {name} is an Array; it takes NumPy arrays (bits of {a.dtype.name}: .numpy(raw=True))")
            if isinstance(a, np.ndarray) and not (as_dtype_or_none(a.dtype) or int64).computes:
                raise TypeError(f"simulate: argument {name} is {a.dtype}, which kernels do not take; use x.astype(np.float32) or np.int32")
        size = sum(a.nbytes for a in args if isinstance(a, np.ndarray))
        uri = f"emu:?hbm={max(256, 2 * (size >> 20) + 128)}M" + (f"&check={check}" if check else "")
        with Device(uri) as device:
            moved = [array(a, device=device) if isinstance(a, np.ndarray) else a for a in args]
            report = self._measure(grid, tuple(moved), constants, device)
            for a, there in zip(args, moved):
                if isinstance(a, np.ndarray) and a.flags.writeable:
                    a[...] = there.numpy(raw=True).view(a.dtype)
            moved.clear()
        return report


def kernel(function: Callable[..., None] | None = None, *, name: str | None = None) -> Any:
    """Makes a kernel of a function of the tile language (jalapeno.language). See JitKernel."""
    if function is None:
        return lambda f: JitKernel(f, name)
    return JitKernel(function, name)


_PLAIN = frozenset({int, bool, str, DType, type(None)})


def _call_key(args: tuple, constants: dict[str, Any]) -> tuple | None:
    """Equal for calls that the same specialisation serves; None where only _specialise can tell."""
    device, signature = _core.signature(args)
    if not device:
        return None
    if not constants:
        return device, signature
    classes = tuple([v.__class__ for v in constants.values()])  # 1 and True are equal, their classes are not
    return (device, signature, classes, tuple(constants.items())) if _PLAIN.issuperset(classes) else None


def _hashable(constants: dict[str, Any]) -> tuple:
    for n, v in constants.items():
        try:
            hash(v)
        except TypeError:
            raise TypeError(f"constant {n} is a {type(v).__name__}, expected something hashable (a number, a string, a tuple, a DType)") from None
    return tuple((n, _exact(v)) for n, v in sorted(constants.items()))


def _exact(value: Any) -> Any:
    """Equal only for the same constant: 1, 1.0 and True are equal, and so are 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple, tuple(_exact(v) for v in value)
    return type(value), repr(value) if isinstance(value, float) else value


# ---- The cache on disk ----
_FORMAT = 2


def cache_directory() -> Path | None:
    """Where built kernels are kept: JALAPENO_CACHE_DIR (empty: nowhere), else ~/.cache/jalapeno."""
    chosen = os.environ.get("JALAPENO_CACHE_DIR")
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jalapeno"
    except RuntimeError:  # nobody's home
        return None


class _Uncacheable(Exception):
    pass


def cache_key(k: JitKernel, sorts: tuple, bound: dict[str, Any], limits: tuple) -> str | None:
    """All that the instructions depend on, as text; None when that cannot be told (then nothing is kept)."""
    seen: dict[int, int] = {}

    def describe(value: Any) -> Any:
        if value is None or value is ... or isinstance(value, (bool, int, float, complex, str, bytes, DType)):
            return repr(value)
        if isinstance(value, (tuple, list)):
            return [type(value).__name__, [describe(v) for v in value]]
        if isinstance(value, frozenset):
            return ["frozenset", sorted(json.dumps(describe(v)) for v in value)]
        if isinstance(value, types.CodeType):
            return ["code", value.co_filename, value.co_name, value.co_code.hex(), value.co_exceptiontable.hex(), value.co_names,
                    value.co_varnames, value.co_freevars, list(value.co_lines()), [describe(c) for c in value.co_consts]]
        if isinstance(value, types.BuiltinFunctionType) or isinstance(value, type) and value.__module__ == "builtins":
            return ["builtin", value.__module__, value.__qualname__]
        if isinstance(value, (types.FunctionType, type)) and _is_library(value.__module__):
            return ["library", value.__module__, value.__qualname__]
        if isinstance(value, types.FunctionType):
            return described(value)
        raise _Uncacheable(type(value).__name__)

    def described(f: types.FunctionType) -> Any:
        # By what runs, not by the source: a file may have changed since it was read.
        if id(f) in seen:
            return ["seen", seen[id(f)]]
        seen[id(f)] = len(seen)
        names = set(_names_in(f.__code__))
        used = {n: f.__globals__[n] for n in names if n in f.__globals__}
        cells = {n: describe(c.cell_contents) for n, c in zip(f.__code__.co_freevars, f.__closure__ or ())}
        return ["function", f.__module__, f.__qualname__, describe(f.__code__), in_modules(used, names), cells,
                [describe(v) for v in f.__defaults__ or ()], {n: describe(v) for n, v in (f.__kwdefaults__ or {}).items()}]

    def in_modules(used: dict[str, Any], names: set[str]) -> dict[str, Any]:
        """Values by name; of a module those that a function with these names in it may use."""
        out = {}
        for n, v in sorted(used.items()):
            if not isinstance(v, types.ModuleType):
                out[n] = describe(v)
            elif _is_library(v.__name__):
                out[n] = ["module", v.__name__, str(getattr(v, "__version__", ""))]
            elif id(v) not in seen:
                seen[id(v)] = len(seen)
                out[n] = ["module", v.__name__, in_modules({m: vars(v)[m] for m in names if m in vars(v)}, names)]
        return out

    try:
        return json.dumps({"format": _FORMAT, "library": _core.version(), "isa": _core.tile.isa_version, "python": sys.version,
                           "package": _package_digest(), "name": k.name, "function": described(k.function), "arguments": sorts,
                           "constants": [[n, type(v).__name__, describe(v)] for n, v in sorted(bound.items())], "limits": limits},
                          sort_keys=True)
    except (_Uncacheable, ValueError):
        return None


def _is_library(module: str | None) -> bool:
    """Whether the version tells what is in it: Python's own modules, NumPy, and this package."""
    top = (module or "__main__").split(".")[0]
    return top in sys.stdlib_module_names and top != "__main__" or top in ("numpy", __package__)


def _names_in(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield from _names_in(c)


@functools.cache
def _package_digest() -> str:
    """Of the code that makes kernels: another version makes others."""
    here = Path(__file__).parent
    built = os.stat(_core.__file__)
    parts = [path.read_bytes() for path in sorted(here.glob("*.py"))]
    return hashlib.sha256(b"".join([*parts, f"{built.st_size} {built.st_mtime_ns} {np.__version__}".encode()])).hexdigest()


def _cache_file(key: str) -> Path | None:
    directory = cache_directory()
    return None if directory is None else directory / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".jk")


def _read_cache(key: str) -> Compiled | None:
    """What was kept under this key; the key in the file must be the same to the letter. A damaged file is as good as none."""
    path = _cache_file(key)
    if path is None:
        return None
    try:
        digest, _, rest = path.read_bytes().partition(b"\n")
        if digest != hashlib.sha256(rest).hexdigest().encode():
            return None
        head, _, image = rest.partition(b"\n")
        said = json.loads(head)
        if said["key"] != key:
            return None
        return Compiled(said["name"], image, said["spm_bytes"], said["acc_bytes"], said["instructions"], True)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_cache(key: str, compiled: Compiled) -> None:
    path = _cache_file(key)
    if path is None:
        return
    head = json.dumps({"key": key, "name": compiled.name, "spm_bytes": compiled.spm_bytes, "acc_bytes": compiled.acc_bytes,
                       "instructions": compiled.instructions})
    rest = head.encode() + b"\n" + compiled.image
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Others see the whole file or none.
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            try:
                f.write(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
                f.close()
                os.replace(f.name, path)
            except OSError:
                os.unlink(f.name)
                raise
    except OSError:
        pass  # a cache that cannot be written is no reason to fail

"""Arrays in the memory of a device (or in host memory it reaches), with NumPy's shapes, slices and conversions.

>>> import numpy as np, jalapeno as jal
>>> a = jal.array(np.arange(6, dtype=np.float32).reshape(2, 3))
>>> a[:, 1:].numpy().tolist()
[[1.0, 2.0], [4.0, 5.0]]
"""
from __future__ import annotations

import math
import threading
from typing import Any, Iterator, Sequence

import numpy as np

from . import _core
from ._core import Device, Memory, Stream, Tensor
from .dtypes import DType, dtype as as_dtype, float32

_default: Device | None = None
_default_lock = threading.Lock()


def default_device() -> Device:
    """The device that is used where none is named: the first of jalapeno.devices(), opened at first use, unless
    set_default_device() named another. Stays open until the process ends or it is closed; then the next use opens another."""
    global _default
    with _default_lock:
        if _default is None or _default.closed:
            _default = Device()
        return _default


def set_default_device(device: Device | None) -> None:
    """Makes this device the one that is used where none is named, for all threads; None: the first of jalapeno.devices() again."""
    global _default
    if device is not None and not isinstance(device, Device):
        raise TypeError(f"set_default_device of a {type(device).__name__}, expected a jalapeno.Device or None")
    with _default_lock:
        _default = device


class Array(Tensor):
    """A view of device memory with shape, element type and strides (bytes). Made by array(), empty(), zeros(), ...

    Slices, reshape and transpose are views of the same memory; it is freed when the last view is gone and enqueued work is
    done with it, whichever stream that work is on. ``place`` is "device", "pinned" (host memory the device reaches, which
    NumPy shares without a copy) or "host" (plain memory, as of from_dlpack). Work goes to the current stream
    (``with stream:``) or the device's own. Pinned and host arrays have the buffer protocol, which gives the bits and waits
    for nothing; device arrays refuse it with BufferError. ``==`` compares identity; ops.equal() compares values.

    After free() or Device.close() every use raises InvalidHandleError. An array belongs to its process: pickling it is a
    TypeError, and a forked child gets ForkedError.
    """

    @property
    def dtype(self) -> DType:
        """The element type."""
        return as_dtype(self.dtype_name)

    # ---- To the host ----
    def numpy(self, *, raw: bool = False) -> np.ndarray:
        """The values, after the current stream's work is done. Pinned and host arrays share their memory with the result
        (which keeps it alive), device arrays are copied. Types NumPy does not have become float32 (exact); raw=True gives
        their bits, tagged. Blocks without the GIL; raises what the stream's work failed with, WaitTimeout, and CaptureError while it records."""
        stream = None if self.device is None else _core.current_stream(self.device)
        if stream is not None:
            stream.synchronize()
        if self.place == "device" and stream is not None:
            bits = np.empty(self.shape, self.dtype.numpy)
            _core.copy(_of_numpy(bits, self.dtype), self, stream)
        else:
            bits = np.asarray(memoryview(self)).view(self.dtype.numpy)  # type: ignore[arg-type]
        return bits if raw or self.dtype.native else self.dtype.decode(bits)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        out = self.numpy()
        if dtype is not None:
            out = out.astype(dtype, copy=False)
        return out.copy() if copy else out

    @property
    def __array_interface__(self) -> dict:
        if self.place == "device":
            raise AttributeError("an array in device memory has no __array_interface__; use .numpy()")
        return {"version": 3, "shape": self.shape, "typestr": self.dtype.numpy.str, "strides": self.strides,
                "data": (self.pointer, not self.writable)}

    def item(self) -> float | int | bool:
        """The only element as a Python number."""
        if self.size != 1:
            raise ValueError(f"item() of an array of shape {self.shape}, expected one element")
        return self.numpy().item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.numpy().tolist()

    # ---- DLPack ----
    def __dlpack__(self, *, stream: Any = None) -> Any:
        """A DLPack capsule, which keeps the memory alive until it is dropped or its consumer is done. The data is ready when
        it is taken: the current stream is waited for. BufferError for a read-only array, which DLPack cannot tell."""
        if stream is not None and not isinstance(stream, int):
            raise TypeError(f"__dlpack__(stream={stream!r}), expected None or an int")
        if not self.writable:
            raise BufferError("the array is read-only, which a DLPack capsule cannot tell; .copy() is not")
        if self.device is not None:
            _core.current_stream(self.device).synchronize()
        return self.dlpack_capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0) in host memory (CPU), (12, 0) on the device (DLPack's extension device)."""
        return (12 if self.place == "device" else 1, 0)

    # ---- Views ----
    def _view(self, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
        # A view of nothing may lie anywhere.
        at = self.offset if 0 in shape else offset
        return Array(self.memory, at, self.dtype_name, list(shape), list(strides), self.writable)

    def __getitem__(self, key: Any) -> Array:
        """A view: ints, slices with steps above 0, ... and None. IndexError for everything else, such as arrays and bools."""
        keys = list(key) if isinstance(key, tuple) else [key]
        named = sum(k is not None and k is not Ellipsis for k in keys)
        if named > self.ndim:
            raise IndexError(f"{named} indices for an array of {self.ndim} dimensions")
        dots = [n for n, k in enumerate(keys) if k is Ellipsis]
        if len(dots) > 1:
            raise IndexError("more than one ... in an index")
        at = dots[0] if dots else len(keys)
        keys[at:at + 1] = [slice(None)] * (self.ndim - named)
        offset, shape, strides, axis = self.offset, [], [], 0
        for k in keys:
            if k is None:
                shape.append(1)
                strides.append(0)
                continue
            n, step = self.shape[axis], self.strides[axis]
            if isinstance(k, slice):
                begin, end, every = k.indices(n)
                if every < 0:
                    raise IndexError(f"slice step {every}, expected above 0: device arrays cannot run backwards")
                count = max(0, -(-(end - begin) // every))
                offset += begin * step
                shape.append(count)
                strides.append(step * every if count > 1 else step)
            else:
                if isinstance(k, (bool, np.bool_, np.ndarray)) or not hasattr(k, "__index__"):
                    raise IndexError(f"index {k!r}, expected ints, slices, ... or None")
                i = k.__index__()
                if not -n <= i < n:
                    raise IndexError(f"index {i} is out of bounds for axis {axis} with {n} elements")
                offset += (i % n) * step
            axis += 1
        return self._view(offset, shape, strides)

    def __setitem__(self, key: Any, value: Any) -> None:
        self[key].copy_from(value)

    def reshape(self, *shape: Any) -> Array:
        """The elements in another shape; one extent may be -1. A view of a dense array, else a view of its dense copy."""
        want = _extents(shape[0] if len(shape) == 1 else shape)
        if want.count(-1) == 1:
            known = math.prod(n for n in want if n != -1)
            if known > 0 and self.size % known == 0:
                want[want.index(-1)] = self.size // known
        if any(n < 0 for n in want) or math.prod(want) != self.size:
            raise ValueError(f"cannot reshape {self.shape} to {tuple(want)}")
        source = self if self.is_contiguous else self.copy()
        return Array(source.memory, source.offset, self.dtype_name, want, None, source.writable)

    def transpose(self, *axes: Any) -> Array:
        """A view with the axes in this order (ints or one tuple of them); reversed when none is given."""
        given = list(axes[0]) if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else list(axes)
        order = [a + self.ndim if a < 0 else a for a in given] or list(range(self.ndim))[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"transpose{tuple(given)} of an array of {self.ndim} dimensions")
        return self._view(self.offset, [self.shape[k] for k in order], [self.strides[k] for k in order])

    @property
    def T(self) -> Array:
        """The view with all axes reversed."""
        return self.transpose()

    def view(self, dtype: Any) -> Array:
        """The same bits as another type of the same size."""
        d = as_dtype(dtype)
        if d.itemsize != self.itemsize:
            raise ValueError(f"view of {self.dtype!r} as {d!r}: the element sizes are {self.itemsize} and {d.itemsize}")
        return Array(self.memory, self.offset, d.name, list(self.shape), list(self.strides), self.writable)

    # ---- Copies ----
    def copy(self, *, out: Array | None = None) -> Array:
        """A dense copy in the same kind of memory, on the same device."""
        if out is None:
            out = self._new_like(self.dtype)
        out.copy_from(self)
        return out

    def __copy__(self) -> Array:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Array:
        return self.copy()

    def _new_like(self, dtype: DType) -> Array:
        if self.device is None:
            return _of_numpy(np.empty(self.shape, dtype.numpy), dtype)
        return empty(self.shape, dtype, self.device, pinned=self.place == "pinned")

    def contiguous(self) -> Array:
        """Itself when dense, else a dense copy."""
        return self if self.is_contiguous else self.copy()

    def to(self, device: Device) -> Array:
        """In the memory of that device: itself when it is there already. Blocks when it comes from another device."""
        if not isinstance(device, Device):
            raise TypeError(f"to({device!r}): expected a jalapeno.Device; .astype() converts to another type")
        if self.device is device and self.place == "device":
            return self
        out = empty(self.shape, self.dtype, device)
        out.copy_from(self)
        return out

    def astype(self, dtype: Any, *, out: Array | None = None) -> Array:
        """The values converted by the rules of jalapeno.dtypes: integers are rounded to nearest even and saturate, NaN becomes 0.
        On the device between types kernels take (through float32, which holds integers up to 2**24 exactly), else on the host,
        which blocks. The result is in the same kind of memory, or out, of this shape and that type."""
        d = as_dtype(dtype)
        if out is None:
            out = self._new_like(d)
        elif out.shape != self.shape or out.dtype is not d:
            raise ValueError(f"astype({d!r}) of shape {self.shape}: out is {out.dtype!r} {out.shape}")
        if d is self.dtype:
            out.copy_from(self)
        elif d.computes and self.dtype.computes and self.device is not None and out.device is self.device and self.ndim <= 4:
            _ops().convert(self, out=out)
        else:
            out.copy_from(d.encode(self.numpy(raw=True)).view(d.numpy))
        return out

    def copy_from(self, value: Any) -> None:
        """Copies a value into this array: an Array of this type and shape, or numbers (anything NumPy understands), which are
        converted and broadcast. Values on the host are read before the call returns. Blocks when this array is in host memory
        and the value is not, and when they are on two devices."""
        if isinstance(value, Array):
            if value.dtype is not self.dtype:
                raise TypeError(f"copy of {value.dtype!r} into {self.dtype!r}; convert with .astype()")
            if value.shape != self.shape:
                raise ValueError(f"copy of shape {value.shape} into {self.shape}")
            if value.memory is self.memory:  # they may overlap
                value = value.copy()
            self._copy_array(value)
            return
        # ascontiguousarray makes one dimension of none.
        self._copy_array(_of_numpy(np.ascontiguousarray(self._bits_of(value)).reshape(self.shape), self.dtype))

    def _bits_of(self, value: Any) -> np.ndarray:
        values = np.asarray(value)
        bits = values if as_dtype_or_none(values.dtype) is self.dtype else self.dtype.encode(values)
        try:
            return np.broadcast_to(bits, self.shape)
        except ValueError:
            raise ValueError(f"copy of shape {values.shape} into {self.shape}") from None

    def _begin_with(self, value: Any) -> None:
        """The first values of an array that nothing uses yet: NumPy sees those of pinned memory at once."""
        if self.place == "pinned":
            np.asarray(memoryview(self)).view(self.dtype.numpy)[...] = self._bits_of(value)  # type: ignore[arg-type]
        elif np.ndim(value) == 0:
            self.fill(value)
        else:
            self.copy_from(value)

    def _copy_array(self, value: Array) -> None:
        if self.device is None and value.device is None:
            self.numpy(raw=True)[...] = value.numpy(raw=True)
            return
        crosses = self.device is None or value.device is not None and value.device is not self.device
        if value.device is not None and crosses:
            _core.current_stream(value.device).synchronize()
        stream = _core.current_stream(self.device or value.device)
        _core.copy(self, value, stream)
        if crosses:
            stream.synchronize()

    def fill(self, value: float | int | bool) -> None:
        """Sets every element to a number."""
        if np.ndim(value) != 0:
            raise ValueError(f"fill with a value of shape {np.shape(value)}, expected a number")
        bits = self.dtype.encode(value)
        if self.device is None or not self.is_contiguous or self.itemsize > 4 or not self.writable:
            self.copy_from(bits)
        else:
            pattern = int(bits.view(f"u{self.itemsize}"))
            _core.fill(self, pattern, _core.current_stream(self.device))

    def free(self) -> None:
        """Gives the memory back now; later use of any view raises InvalidHandleError. Enqueued work keeps it until it is done.
        Not needed: it happens with the last view. IllegalStateError while a buffer of it (a memoryview, a NumPy array) lives."""
        self.memory.free()

    # ---- Arithmetic: see jalapeno.ops ----
    def __add__(self, other: Any) -> Array:
        return _ops().add(self, other)

    __radd__ = __add__

    def __iadd__(self, other: Any) -> Array:
        return _ops().add(self, other, out=self)

    def __isub__(self, other: Any) -> Array:
        return _ops().subtract(self, other, out=self)

    def __imul__(self, other: Any) -> Array:
        return _ops().multiply(self, other, out=self)

    def __itruediv__(self, other: Any) -> Array:
        return _ops().divide(self, other, out=self)

    def sum(self, axis: int | None = None) -> Array:
        """ops.sum."""
        return _ops().sum(self, axis)

    def mean(self, axis: int | None = None) -> Array:
        """ops.mean."""
        return _ops().mean(self, axis)

    def max(self, axis: int | None = None) -> Array:
        """ops.max."""
        return _ops().max(self, axis)

    def min(self, axis: int | None = None) -> Array:
        """ops.min."""
        return _ops().min(self, axis)

    def __sub__(self, other: Any) -> Array:
        return _ops().subtract(self, other)

    def __rsub__(self, other: Any) -> Array:
        return _ops().subtract(other, self)

    def __mul__(self, other: Any) -> Array:
        return _ops().multiply(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Array:
        return _ops().divide(self, other)

    def __rtruediv__(self, other: Any) -> Array:
        return _ops().divide(other, self)

    def __neg__(self) -> Array:
        return _ops().negative(self)

    def __matmul__(self, other: Any) -> Array:
        return _ops().matmul(self, other)

    # NumPy would otherwise take "ndarray + Array" apart element by element.
    __array_ufunc__ = None
    # "number in array" would compare identities.
    __contains__ = None

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of an array of no dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        return (self[k] for k in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __reduce__(self) -> Any:
        raise TypeError("an Array lives in this process; pickle its .numpy() instead")

    def __repr__(self) -> str:
        where = "freed" if self.memory.freed else f"{self.place} of {self.device.uri}" if self.device else self.place
        return f"<jalapeno.Array {self.dtype.name} {self.shape}, {where}>"


def _ops() -> Any:
    from . import ops
    return ops


def as_dtype_or_none(what: Any) -> DType | None:
    """The element type, or None when there is none."""
    try:
        return as_dtype(what)
    except TypeError:
        return None


def _of_numpy(a: np.ndarray, d: DType) -> Array:
    """A host Array that shares the memory of a NumPy array."""
    memory = Memory.of_buffer(a.view(a.dtype.str) if a.dtype.metadata else a, a.flags.writeable)
    return Array(memory, 0, d.name, list(a.shape), [s if n > 1 else d.itemsize for s, n in zip(a.strides, a.shape)],
                 a.flags.writeable)


def empty(shape: Any, dtype: Any = float32, device: Device | None = None, *, pinned: bool = False,
          stream: Stream | None = None) -> Array:
    """An array with undefined contents. shape: an int or a sequence of up to 8. pinned: in host memory that the device reaches
    and NumPy shares (zeroed). stream: allocated in the order of that stream, from memory it has just freed where that fits. Raises
    OutOfMemoryError."""
    d = as_dtype(dtype)
    extents = _extents(shape)
    if any(n < 0 for n in extents):
        raise ValueError(f"shape {tuple(extents)}, expected extents of at least 0")
    bytes_ = math.prod(extents) * d.itemsize
    if max(bytes_, *extents, 0) >= 2**63:
        raise ValueError(f"shape {tuple(extents)} of {d.name} takes more bytes than fit 63 bits")
    if len(extents) > 8:
        raise ValueError(f"shape {tuple(extents)}, expected at most 8 dimensions")
    memory = Memory(device or default_device(), bytes_, "pinned" if pinned else "device", stream)
    return Array(memory, 0, d.name, extents, None, True)


def _extents(shape: Any) -> list[int]:
    try:
        return [shape.__index__()] if hasattr(shape, "__index__") and np.ndim(shape) == 0 else [n.__index__() for n in shape]
    except (TypeError, AttributeError):
        raise TypeError(f"shape {shape!r}, expected an int or a sequence of ints") from None


def full(shape: Any, value: float | int | bool, dtype: Any = float32, device: Device | None = None, *,
         pinned: bool = False) -> Array:
    """An array of one value."""
    if np.ndim(value) != 0:
        raise ValueError(f"full of a value of shape {np.shape(value)}, expected a number")
    out = empty(shape, dtype, device, pinned=pinned)
    out._begin_with(value)
    return out


def zeros(shape: Any, dtype: Any = float32, device: Device | None = None, *, pinned: bool = False) -> Array:
    """An array of zeros."""
    return full(shape, 0, dtype, device, pinned=pinned)


def ones(shape: Any, dtype: Any = float32, device: Device | None = None, *, pinned: bool = False) -> Array:
    """An array of ones."""
    return full(shape, 1, dtype, device, pinned=pinned)


def empty_like(a: Array, dtype: Any = None) -> Array:
    """An array of a's shape, type and device."""
    return empty(a.shape, dtype or a.dtype, a.device)


def zeros_like(a: Array, dtype: Any = None) -> Array:
    """Zeros of a's shape, type and device."""
    return zeros(a.shape, dtype or a.dtype, a.device)


def array(values: Any, dtype: Any = None, device: Device | None = None, *, pinned: bool = False) -> Array:
    """A copy of values (a NumPy array, a list, an Array, anything NumPy takes) on the device. The values are read before the
    call returns. Python floats and float64 become float32, ints that are no NumPy array int32 where they fit. TypeError for a
    NumPy type that has no element type here, unless dtype is given."""
    if isinstance(values, Array):
        out = empty(values.shape, dtype or values.dtype, device or values.device, pinned=pinned)
        if out.dtype is values.dtype:
            out.copy_from(values)
        else:
            values.astype(out.dtype, out=out)
        return out
    given = np.asarray(values)
    if dtype is None:
        if given.dtype == np.float64:
            dtype = float32
        elif given.dtype == np.int64 and not isinstance(values, (np.ndarray, np.generic)) and (
                given.size == 0 or -2**31 <= given.min() and given.max() < 2**31):
            dtype = np.int32
        else:
            dtype = given.dtype
    out = empty(given.shape, dtype, device, pinned=pinned)
    out._begin_with(given)
    return out


def asarray(values: Any, dtype: Any = None, device: Device | None = None) -> Array:
    """Itself when it is an Array on that device and of that type, else array()."""
    if isinstance(values, Array) and (dtype is None or as_dtype(dtype) is values.dtype) and (
            device is None or values.device is device) and values.place != "host":
        return values
    return array(values, dtype, device)


def arange(stop: int, dtype: Any = np.int32, device: Device | None = None) -> Array:
    """0, 1, ... stop - 1."""
    return array(np.arange(stop), dtype, device)


def from_dlpack(x: Any) -> Array:
    """An Array over the memory of another library's array, without a copy: "host" for CPU tensors (NumPy, PyTorch), which
    .to(device) copies to a device; a device array when it was one of ours. Keeps the other array alive. TypeError when x has no
    DLPack, InvalidValueError for types and devices that have no counterpart here."""
    if not hasattr(x, "__dlpack_device__"):
        raise TypeError(f"from_dlpack of a {type(x).__name__}, expected an array with __dlpack__")
    device_type = x.__dlpack_device__()[0]
    if int(device_type) not in (1, 12):
        raise ValueError(f"DLPack device type {int(device_type)}, expected 1 (CPU) or 12 (this library's)")
    return Array(_core.from_dlpack(x.__dlpack__()))

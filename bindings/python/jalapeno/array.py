"""Arrays in the memory of a device (or in host memory it reaches), with NumPy's shapes, slices and conversions.

>>> import numpy as np, jalapeno as jal
>>> a = jal.array(np.arange(6, dtype=np.float32).reshape(2, 3))
>>> a[:, 1:].numpy().tolist()
[[1.0, 2.0], [4.0, 5.0]]
"""
from __future__ import annotations

from typing import Any, Iterator, Sequence

import numpy as np

from . import _core
from ._core import Device, Memory, Stream, Tensor
from .dtypes import DType, dtype as as_dtype, float32

_default: Device | None = None


def default_device() -> Device:
    """The device that is used where none is named: the first of jalapeno.devices(), opened at first use."""
    global _default
    if _default is None or _default.closed:
        _default = Device()
    return _default


class Array(Tensor):
    """A view of device memory with shape, element type and strides (bytes). Made by array(), empty(), zeros(), ...

    Slices, reshape and transpose are views of the same memory; it is freed when the last view is gone and enqueued work is
    done with it, whichever stream that work is on. ``place`` is "device", "pinned" (host memory the device reaches, which
    NumPy shares without a copy) or "host". Work goes to the current stream (``with stream:``) or the device's own.
    """

    @property
    def dtype(self) -> DType:
        """The element type."""
        return as_dtype(self.dtype_name)

    # ---- To the host ----
    def numpy(self, *, raw: bool = False) -> np.ndarray:
        """The values. Pinned and host arrays share their memory with the result, device arrays are copied after the current
        stream's work. Types NumPy does not have become float32 (exact); raw=True gives their bits, tagged."""
        if self.place == "device":
            bits = np.empty(self.shape, self.dtype.numpy)
            if self.size:
                stream = _core.current_stream(self.device)
                stream.synchronize()
                _core.copy(_of_numpy(bits, self.dtype), self, stream)
        else:
            bits = np.asarray(memoryview(self)).view(self.dtype.numpy) if self.size else np.empty(self.shape, self.dtype.numpy)
        return bits if raw or self.dtype.native else self.dtype.decode(bits)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        out = self.numpy()
        return out if dtype is None else out.astype(dtype, copy=False)

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
        """A DLPack capsule. The data is ready when it is taken: the current stream is waited for."""
        if stream is not None and not isinstance(stream, int):
            raise TypeError(f"__dlpack__(stream={stream!r}), expected None or an int")
        if self.device is not None:
            _core.current_stream(self.device).synchronize()
        return self.dlpack_capsule()

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0) in host memory (CPU), (12, 0) on the device (DLPack's extension device)."""
        return (12 if self.place == "device" else 1, 0)

    # ---- Views ----
    def _view(self, offset: int, shape: Sequence[int], strides: Sequence[int]) -> Array:
        return Array(self.memory, offset, self.dtype_name, list(shape), list(strides), self.writable)

    def __getitem__(self, key: Any) -> Array:
        """A view: ints, slices with steps above 0, ... and None."""
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
                offset += begin * step if count else 0
                shape.append(count)
                strides.append(step * every)
            else:
                try:
                    i = k.__index__()
                except AttributeError:
                    raise IndexError(f"index {k!r}, expected ints, slices, ... or None") from None
                if not -n <= i < n:
                    raise IndexError(f"index {i} is out of bounds for axis {axis} with {n} elements")
                offset += (i % n) * step
            axis += 1
        return self._view(offset, shape, strides)

    def __setitem__(self, key: Any, value: Any) -> None:
        self[key].copy_from(value)

    def reshape(self, *shape: Any) -> Array:
        """The elements in another shape; one extent may be -1. A copy only when the strides do not allow a view."""
        want = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
        if want.count(-1) == 1:
            known = int(np.prod([n for n in want if n != -1]))
            if known == 0 or self.size % known:
                raise ValueError(f"cannot reshape {self.shape} to {tuple(want)}")
            want[want.index(-1)] = self.size // known
        if int(np.prod(want)) != self.size or any(n < 0 for n in want):
            raise ValueError(f"cannot reshape {self.shape} to {tuple(want)}")
        source = self if self.is_contiguous else self.copy()
        return Array(source.memory, source.offset, self.dtype_name, want, None, self.writable)

    def transpose(self, *axes: int) -> Array:
        """A view with the axes in this order; reversed when none is given."""
        order = list(axes) or list(range(self.ndim))[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"transpose{tuple(axes)} of an array of {self.ndim} dimensions")
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
        """A dense copy on the device (pinned for pinned and host arrays that belong to one)."""
        if out is None:
            out = empty(self.shape, self.dtype, self.device or default_device(), pinned=self.place != "device")
        out.copy_from(self)
        return out

    def contiguous(self) -> Array:
        """Itself when dense, else a dense copy."""
        return self if self.is_contiguous else self.copy()

    def to(self, device: Device) -> Array:
        """On that device: itself when it is there already."""
        if self.device is device and self.place == "device":
            return self
        out = empty(self.shape, self.dtype, device)
        out.copy_from(self)
        return out

    def astype(self, dtype: Any, *, out: Array | None = None) -> Array:
        """The values converted (rounded to nearest even): on the device between types kernels take, else on the host."""
        d = as_dtype(dtype)
        if out is None:
            out = empty(self.shape, d, self.device or default_device())
        if d is self.dtype:
            out.copy_from(self)
        elif d.computes and self.dtype.computes and self.place != "host" and self.is_contiguous and out.is_contiguous:
            from . import ops
            ops.convert(self, out=out)
        else:
            out.copy_from(np.asarray(d.encode(self.numpy())).view(d.numpy))
        return out

    def copy_from(self, value: Any) -> None:
        """Copies a value into this array: an Array or something NumPy understands, of this shape or broadcast to it from the
        host. An Array must have this element type; other values are converted."""
        if isinstance(value, Array):
            if value.dtype is not self.dtype:
                raise TypeError(f"copy of {value.dtype!r} into {self.dtype!r}; convert with .astype()")
            if value.shape != self.shape:
                raise ValueError(f"copy of shape {value.shape} into {self.shape}")
            device = self.device or value.device
            if device is None:
                self.numpy(raw=True)[...] = value.numpy(raw=True)
            else:
                _core.copy(self, value, _core.current_stream(device))
            return
        values = np.asarray(value)
        bits = values if as_dtype_or_none(values.dtype) is self.dtype else self.dtype.encode(values)
        bits = np.ascontiguousarray(np.broadcast_to(bits, self.shape))
        if self.device is None:
            self.numpy(raw=True)[...] = bits
        else:
            _core.copy(self, _of_numpy(bits, self.dtype), _core.current_stream(self.device))

    def fill(self, value: float | int | bool) -> None:
        """Sets every element."""
        bits = np.asarray(self.dtype.encode(np.asarray(value))).reshape(1)
        if self.device is None or not self.is_contiguous or self.itemsize > 4:
            self.copy_from(bits.view(self.dtype.numpy))
        else:
            pattern = int(bits.view(f"u{self.itemsize}")[0])
            _core.fill(self, pattern, _core.current_stream(self.device))

    def free(self) -> None:
        """Gives the memory back now; later use of any view raises InvalidHandleError. Enqueued work keeps it until it is done.
        Not needed: it happens with the last view."""
        self.memory.free()

    # ---- Arithmetic: see jalapeno.ops ----
    def __add__(self, other: Any) -> Array:
        return _ops().add(self, other)

    __radd__ = __add__

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
    try:
        return as_dtype(what)
    except TypeError:
        return None


def _of_numpy(a: np.ndarray, d: DType) -> Array:
    """A host Array that shares the memory of a NumPy array."""
    memory = Memory.of_buffer(a.view(np.uint8) if a.dtype.metadata else a, a.flags.writeable)
    return Array(memory, 0, d.name, list(a.shape), [s if n > 1 else d.itemsize for s, n in zip(a.strides, a.shape)],
                 a.flags.writeable)


def empty(shape: Any, dtype: Any = float32, device: Device | None = None, *, pinned: bool = False,
          stream: Stream | None = None) -> Array:
    """An array with undefined contents. pinned: in host memory that the device reaches and NumPy shares (zeroed).
    stream: allocated in the order of that stream, from memory it has just freed where that fits."""
    d = as_dtype(dtype)
    extents = [shape.__index__()] if hasattr(shape, "__index__") else [n.__index__() for n in shape]
    if any(n < 0 for n in extents):
        raise ValueError(f"shape {tuple(extents)}, expected extents of at least 0")
    count = 1
    for n in extents:
        count *= n
    memory = Memory(device or default_device(), count * d.itemsize, "pinned" if pinned else "device", stream)
    return Array(memory, 0, d.name, extents, None, True)


def full(shape: Any, value: float | int | bool, dtype: Any = float32, device: Device | None = None, *,
         pinned: bool = False) -> Array:
    """An array of one value."""
    out = empty(shape, dtype, device, pinned=pinned)
    out.fill(value)
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
    call returns. Python floats and float64 become float32, ints that are no NumPy array int32 where they fit."""
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
    out.copy_from(given)
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
    .to(device) copies to a device; a device array when it was one of ours."""
    device_type = x.__dlpack_device__()[0]
    if int(device_type) not in (1, 12):
        raise ValueError(f"DLPack device type {int(device_type)}, expected 1 (CPU) or 12 (this library's)")
    return Array(_core.from_dlpack(x.__dlpack__()))

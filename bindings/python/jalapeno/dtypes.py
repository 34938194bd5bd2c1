"""Element types. NumPy has no type for bfloat16 and the 8-bit floats: their bits travel in unsigned integers whose NumPy
type carries the tag ``{"jalapeno": name}`` as metadata, and ``encode`` / ``decode`` convert values.

>>> import numpy as np
>>> bits = bfloat16.encode(np.array([1.0, 3.14159], np.float32))
>>> bits.dtype.metadata["jalapeno"]
'bfloat16'
>>> bfloat16.decode(bits).tolist()
[1.0, 3.140625]

Conversions round to nearest even. Integers saturate and take NaN as 0, 8-bit floats saturate, the other floats overflow to
infinity; bool is whether a value is not 0. The device and the host give the same results.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from ._core import dtypes as _table


class DType:
    """An element type. ``numpy`` is the NumPy type of its bits, tagged where NumPy has no type for its values."""

    def __init__(self, name: str, itemsize: int, carrier: str, native: bool, code: int):
        self.name, self.itemsize, self.native, self.code = name, itemsize, native, code
        self.numpy = np.dtype(carrier) if native else np.dtype(carrier, metadata={"jalapeno": name})  # type: ignore[call-overload]

    @property
    def computes(self) -> bool:
        """Whether kernels take it; the others only lie in memory."""
        return self.code >= 0

    @property
    def is_float(self) -> bool:
        """Whether it is one of the float types."""
        """Whether it holds fractions."""
        return "float" in self.name

    def encode(self, values: Any) -> np.ndarray:
        """Numbers to bits of the same shape, by the rules of this module. Tagged bits are decoded first; bfloat16 and the 8-bit
        floats go through float32. Raises TypeError for what is no number."""
        v = np.asarray(values)
        source = tagged(v.dtype)
        if source is not None:
            v = source.decode(v)
        if v.dtype.kind not in "biuf":
            raise TypeError(f"values of NumPy type {v.dtype}, expected numbers")
        with np.errstate(over="ignore", invalid="ignore"):
            if self.native and self.numpy.kind in "iu":
                return self._saturated(v)
            if self.native:
                return v.astype(self.numpy, copy=False)
            f = v.astype(np.float32)
        if self.name == "bfloat16":
            u = np.ascontiguousarray(f).view(np.uint32)
            rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
            bits = np.where(np.isnan(f), ((u >> 16) | 0x40).astype(np.uint16), rounded)
            return bits.reshape(f.shape).view(self.numpy)
        table = self._values()
        largest = np.nanmax(np.where(np.isfinite(table), table, np.nan))
        order = np.argsort(table[:128][np.isfinite(table[:128])], kind="stable")
        positive = table[:128][np.isfinite(table[:128])][order]
        magnitude = np.minimum(np.abs(f), largest)
        above = np.clip(np.searchsorted(positive, magnitude), 1, len(positive) - 1)
        low, high = positive[above - 1], positive[above]
        middle = (low.astype(np.float64) + high) / 2
        up = (magnitude > middle) | ((magnitude == middle) & (order[above] % 2 == 0))
        code: np.ndarray = np.where(up, order[above], order[above - 1]).astype(np.uint8)
        code = np.where(np.isnan(f), 0x7F, code) | np.where(np.signbit(f), 0x80, 0).astype(np.uint8)
        return np.asarray(code, np.uint8).view(self.numpy)

    def _saturated(self, v: np.ndarray) -> np.ndarray:
        """As an integer type."""
        low, high = int(np.iinfo(self.numpy).min), int(np.iinfo(self.numpy).max)
        if v.dtype.kind == "f":
            f = np.rint(v.astype(np.promote_types(v.dtype, np.float64)))
            inside = np.where((f > low) & (f < high), f, 0).astype(self.numpy)
            return np.asarray(np.where(f >= high, self.numpy.type(high), np.where(f <= low, self.numpy.type(low), inside)))
        if v.dtype.kind in "iu":
            limits = np.iinfo(v.dtype)
            v = np.clip(v, max(low, int(limits.min)), min(high, int(limits.max)))
        return np.asarray(v).astype(self.numpy, copy=False)

    def decode(self, bits: Any) -> np.ndarray:
        """Bits to values: float32 for the types NumPy does not have (exact), the same array otherwise."""
        b = np.asarray(bits)
        if self.native:
            return b
        if b.dtype.itemsize != self.itemsize or b.dtype.kind not in "iu":
            raise TypeError(f"bits of {self.name} as NumPy type {b.dtype}, expected {self.numpy}")
        if self.name == "bfloat16":
            return (np.ascontiguousarray(b).view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(b.shape)
        return np.asarray(self._values()[b.view(np.uint8)])

    def _values(self) -> np.ndarray:
        """What the 256 codes of an 8-bit float mean."""
        code = np.arange(256)
        mantissa_bits, bias = (3, 7) if self.name == "float8_e4m3" else (2, 15)
        exponent, mantissa = (code & 0x7F) >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        step = 2.0 ** -mantissa_bits
        value = np.where(exponent == 0, mantissa * step * 2.0 ** (1 - bias),
                         (1 + mantissa * step) * 2.0 ** (exponent.astype(float) - bias))
        if self.name == "float8_e4m3":
            value[(code & 0x7F) == 0x7F] = np.nan
        else:
            value[(code & 0x7F) == 0x7C] = np.inf
            value[(code & 0x7F) > 0x7C] = np.nan
        return (value * np.where(code & 0x80, -1, 1)).astype(np.float32)

    def __repr__(self) -> str:
        return f"jalapeno.{self.name}"

    def __reduce__(self) -> tuple:
        return _named, (self.name,)


_BY_NAME = {row[0]: DType(*row) for row in _table}


def tagged(n: np.dtype) -> DType | None:
    """The element type a NumPy type is tagged with."""
    return _BY_NAME.get(str(n.metadata.get("jalapeno"))) if n.metadata else None


def _named(name: str) -> DType:
    return _BY_NAME[name]


def dtype(what: Any) -> DType:
    """The element type that a DType, a name, or a NumPy type (tagged or not) stands for."""
    if isinstance(what, DType):
        return what
    if isinstance(what, str) and what in _BY_NAME:
        return _BY_NAME[what]
    try:
        n = np.dtype(what)
    except TypeError:
        raise TypeError(f"{what!r} is no element type; expected one of {', '.join(_BY_NAME)}") from None
    tag = tagged(n)
    if tag is not None:
        return tag
    found = _BY_NAME.get(n.name)
    if found is None or not found.native or not n.isnative:
        raise TypeError(f"NumPy type {n} has no element type here; expected one of {', '.join(_BY_NAME)}")
    return found


float32 = _BY_NAME["float32"]
bfloat16 = _BY_NAME["bfloat16"]
float16 = _BY_NAME["float16"]
float8_e4m3 = _BY_NAME["float8_e4m3"]
float8_e5m2 = _BY_NAME["float8_e5m2"]
int8 = _BY_NAME["int8"]
int32 = _BY_NAME["int32"]
int64 = _BY_NAME["int64"]
uint8 = _BY_NAME["uint8"]
bool_ = _BY_NAME["bool"]

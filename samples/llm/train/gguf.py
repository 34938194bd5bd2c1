"""Writes GGUF version 3 files from NumPy arrays. Owns the byte layout; knows nothing of models.

Tensors are given as float32 arrays of shape [rows, columns] or [columns], and stored as `dtype`:
F32, F16, BF16, Q8_0, Q4_0 or MXFP4 (blocks of 32 along the columns).
"""
import struct

import numpy as np

TYPE_ID = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 8, "BF16": 30, "MXFP4": 39}
ALIGNMENT = 32


def to_bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def to_q8_0(x):
    blocks = x.astype(np.float32).reshape(-1, 32)
    d = (np.abs(blocks).max(1) / 127).astype(np.float32)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d > 0)
    out = np.zeros((len(blocks), 34), np.uint8)
    out[:, :2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
    out[:, 2:] = np.rint(blocks * inverse[:, None]).astype(np.int8).view(np.uint8)
    return out


def to_q4_0(x):
    blocks = x.astype(np.float32).reshape(-1, 32)
    peak = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(1)]
    d = (peak / -8).astype(np.float32)
    inverse = np.divide(1, d, out=np.zeros_like(d), where=d != 0)
    q = np.minimum(np.floor(blocks * inverse[:, None] + 8.5), 15).astype(np.uint8)
    out = np.zeros((len(blocks), 18), np.uint8)
    out[:, :2] = d.astype(np.float16).view(np.uint8).reshape(-1, 2)
    out[:, 2:] = q[:, :16] | (q[:, 16:] << 4)
    return out


def to_mxfp4(x):
    """A power of two for each block (e8m0), then two e2m1 a byte: to nearest, ties to the even code, at most 6."""
    blocks = x.astype(np.float32).reshape(-1, 32)
    peak = np.abs(blocks).max(1)
    exponent = np.clip(np.frexp(peak)[1] + 126 - 2, 0, 254)  # of the largest power of two in it, less that of 4
    exponent[peak == 0] = 0
    m = np.abs(blocks) / np.ldexp(np.float32(1), exponent - 127)[:, None]
    code = sum((m > t if k % 2 == 0 else m >= t).astype(np.uint8) for k, t in enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5)))
    code |= ((blocks < 0) & (code != 0)).astype(np.uint8) << 3
    out = np.zeros((len(blocks), 17), np.uint8)
    out[:, 0] = exponent
    out[:, 1:] = code[:, :16] | (code[:, 16:] << 4)
    return out


ENCODE = {"F32": lambda x: x.astype("<f4"), "F16": lambda x: x.astype("<f2"), "BF16": to_bf16, "Q8_0": to_q8_0, "Q4_0": to_q4_0,
          "MXFP4": to_mxfp4}


def _string(s):
    raw = s if isinstance(s, bytes) else s.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(v):
    """(type id, bytes) of a metadata value: bool, int (u32), float (f32), str or a list of one kind."""
    if isinstance(v, bool):
        return 7, struct.pack("<?", v)
    if isinstance(v, (int, np.integer)):
        return (4, struct.pack("<I", v)) if v >= 0 else (5, struct.pack("<i", v))
    if isinstance(v, (float, np.floating)):
        return 6, struct.pack("<f", v)
    if isinstance(v, (str, bytes)):
        return 8, _string(v)
    kind = 5 if isinstance(v[0], (int, np.integer)) and not isinstance(v[0], bool) else _value(v[0])[0]
    return 9, struct.pack("<IQ", kind, len(v)) + b"".join(struct.pack("<i", x) if kind == 5 else _value(x)[1] for x in v)


def write(path, metadata, tensors):
    """tensors: list of (name, float32 array, dtype name)."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    for key, v in metadata.items():
        kind, raw = _value(v)
        head += _string(key) + struct.pack("<I", kind) + raw
    offset, payload = 0, []
    for name, array, dtype in tensors:
        raw = ENCODE[dtype](array).tobytes()
        shape = array.shape[::-1]  # ggml counts the fastest dimension first
        head += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        head += struct.pack("<IQ", TYPE_ID[dtype], offset)
        padding = -len(raw) % ALIGNMENT
        payload.append(raw + bytes(padding))
        offset += len(raw) + padding
    with open(path, "wb") as f:
        f.write(head + bytes(-len(head) % ALIGNMENT))
        for raw in payload:
            f.write(raw)

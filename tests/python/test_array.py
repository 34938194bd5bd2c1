"""Arrays against NumPy: creation, conversions, views, sharing of memory, lifetime, and what is refused."""
import copy
import ctypes
import gc
import operator
import pickle
import threading
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jalapeno as jal

DTYPES = list(jal.dtypes._BY_NAME.values())
NATIVE = [d for d in DTYPES if d.native]
FLOAT8 = [d for d in DTYPES if d.name.startswith("float8")]
IDS = {"ids": lambda d: getattr(d, "name", str(d))}


def random(dtype, shape, seed=0):
    """NumPy values that the type holds exactly, of float32 where NumPy has no such type."""
    rng = np.random.default_rng(seed)
    if dtype.name == "bool":
        return rng.random(shape) < 0.5
    if not dtype.is_float:
        info = np.iinfo(dtype.numpy)
        return rng.integers(max(info.min, -2**62), min(int(info.max), 2**62), shape).astype(dtype.numpy)
    values = rng.standard_normal(shape).astype(np.float32)
    return dtype.decode(dtype.encode(values)) if not dtype.native else values.astype(dtype.numpy)


# ---- Element types ----
def test_types_are_found_by_name_numpy_type_and_tag():
    for d in DTYPES:
        assert jal.dtype(d) is d and jal.dtype(d.name) is d and jal.dtype(d.numpy) is d
        assert repr(d) == f"jalapeno.{d.name}" and pickle.loads(pickle.dumps(d)) is d
        assert d.numpy.itemsize == d.itemsize
        assert (d.numpy.metadata is None) == d.native
    assert jal.dtype(np.float32) is jal.float32 and jal.dtype(bool) is jal.bool_ and jal.dtype(int) is jal.int64
    assert jal.bfloat16.numpy.metadata["jalapeno"] == "bfloat16"
    assert jal.dtype("uint8") is jal.uint8 and not jal.uint8.computes and jal.int8.computes


@pytest.mark.parametrize("what, text", [("complex64",
                                         "NumPy type complex64 has no element type here; expected one of float32, bfloat16"),
                                        (float, "NumPy type float64 has no element type here"),
                                        ("nope", "'nope' is no element type"),
                                        (">f4", "NumPy type >f4 has no element type here"),
                                        ("U3", "NumPy type <U3 has no element type"),
                                        (object, "NumPy type object has no element type here"), (5, "5 is no element type")])
def test_what_is_no_type(refuses, what, text):
    with refuses(TypeError, text):
        jal.dtype(what)


def bfloat16_by_hand(value):
    """Nearest of the neighbours, ties to the even code, by exact arithmetic in float64."""
    bits = int(np.float32(value).view(np.uint32))
    low, high = bits >> 16, (bits >> 16) + 1
    a, b = (float(np.uint32(c << 16).view(np.float32)) if c & 0x7FFF != 0x7F80 else float(2.0**128) * (-1) ** (c >> 15) for c in (low, high))
    v = float(value)
    if abs(v - a) != abs(v - b):
        return low if abs(v - a) < abs(v - b) else high
    return low if low % 2 == 0 else high


def test_bfloat16_decodes_every_code_and_encodes_it_back():
    codes = np.arange(65536, dtype=np.uint16)
    values = jal.bfloat16.decode(codes)
    sign, exponent, mantissa = codes >> 15, (codes >> 7 & 0xFF).astype(int), (codes & 0x7F).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.where(exponent == 0, mantissa / 128 * 2.0**-126, (1 + mantissa / 128) * 2.0 ** (exponent - 127.0))
    expected = np.where(exponent == 255, np.where(mantissa == 0, np.inf, np.nan), expected) * np.where(sign, -1.0, 1.0)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        np.testing.assert_array_equal(values.astype(np.float64), expected)
    back = jal.bfloat16.encode(values)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(back[finite], codes[finite])
    assert np.isnan(jal.bfloat16.decode(back[~finite])).all()


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_bfloat16_rounds_to_nearest_even(value):
    assert int(jal.bfloat16.encode(value)) == bfloat16_by_hand(value)


def test_bfloat16_ties_and_specials():
    for text, code in ((1 + 2**-8, 0x3F80), (1 + 3 * 2**-8, 0x3F82), (np.inf, 0x7F80), (-np.inf, 0xFF80), (3.4e38, 0x7F80),
                       (-0.0, 0x8000),
                       (1e300, 0x7F80), (2**-133, 0x0001), (2**-134, 0)):
        assert int(jal.bfloat16.encode(text)) == code, text
    assert np.isnan(jal.bfloat16.decode(jal.bfloat16.encode(np.nan)))


@pytest.mark.parametrize("d", FLOAT8, **IDS)
def test_float8_against_its_table(d):
    """Every code back to itself, every value to the nearest finite one, ties to the even code."""
    codes = np.arange(256, dtype=np.uint8)
    values = d.decode(codes).astype(np.float64)
    finite = np.isfinite(values)
    np.testing.assert_array_equal(d.encode(values[finite])[values[finite] != 0], codes[finite][values[finite] != 0])
    largest = {"float8_e4m3": 448.0, "float8_e5m2": 57344.0}[d.name]
    assert values[finite].max() == largest and d.decode(d.encode([1e9, -np.inf])).tolist() == [largest, -largest]
    assert np.isnan(d.decode(d.encode(np.nan)))
    table = values[finite]
    table_codes = codes[finite]
    x = np.concatenate([np.random.default_rng(1).standard_normal(500) * 8, (table[1:20] + table[:19]) / 2]).astype(np.float32)
    for v, code in zip(x.astype(np.float64), d.encode(x)):
        distance = np.abs(table - v)
        best = table_codes[distance == distance.min()]
        assert code in best and (len({c % 2 for c in best}) == 1 or code % 2 == 0), (v, code, best)


def test_float8_is_there():
    assert [d.name for d in FLOAT8] == ["float8_e4m3", "float8_e5m2"]


def test_integers_round_and_saturate():
    values = [2.5, 3.5, -2.5, 1e20, -1e20, np.nan, np.inf, -np.inf]
    assert jal.int8.encode(values).tolist() == [2, 4, -2, 127, -128, 0, 127, -128]
    assert jal.uint8.encode(values).tolist() == [2, 4, 0, 255, 0, 0, 255, 0]
    assert jal.int32.encode(values).tolist() == [2, 4, -2, 2**31 - 1, -2**31, 0, 2**31 - 1, -2**31]
    assert jal.int64.encode(values).tolist() == [2, 4, -2, 2**63 - 1, -2**63, 0, 2**63 - 1, -2**63]
    assert jal.int8.encode(np.array([300, -300])).tolist() == [127, -128]
    assert jal.int64.encode(np.array([2**64 - 1], np.uint64)).tolist() == [2**63 - 1]
    assert jal.int32.encode(True).tolist() == 1 and jal.bool_.encode([0.0, 0.5, np.nan]).tolist() == [False, True, True]
    assert jal.float16.encode([1e6, 65504.0]).tolist() == [np.inf, 65504.0]


def test_encode_and_decode_refuse(refuses):
    for values, text in ((["a"], "values of NumPy type <U1, expected numbers"),
                         ([1j], "values of NumPy type complex128, expected numbers"),
                         (None, "values of NumPy type object, expected numbers"),
                         (2**70, "values of NumPy type object, expected numbers")):
        for d in (jal.float32, jal.bfloat16, jal.int8):
            with refuses(TypeError, text):
                d.encode(values)
    with refuses(TypeError, "bits of bfloat16 as NumPy type float64, expected uint16"):
        jal.bfloat16.decode(np.ones(3))


# ---- Creation, to NumPy and back ----
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (2, 1, 3, 2), (1, 2, 1, 2, 1, 2, 1, 2)], ids=str)
@pytest.mark.parametrize("d", DTYPES, **IDS)
def test_round_trip(device, d, shape, pinned):
    values = random(d, shape)
    a = jal.array(values, d, device, pinned=pinned)
    assert (a.shape, a.dtype, a.ndim, a.size, a.nbytes) == (shape, d, len(shape), values.size, values.size * d.itemsize)
    assert a.place == ("pinned" if pinned else "device") and a.device is device and a.writable and a.is_contiguous
    assert a.strides == np.empty(shape, d.numpy).strides or values.size == 0
    back = a.numpy()
    assert back.shape == shape and back.dtype == (d.numpy if d.native else np.float32)
    np.testing.assert_array_equal(back, values)
    bits = a.numpy(raw=True)
    assert bits.dtype == d.numpy and (d.native or bits.dtype.metadata["jalapeno"] == d.name)
    again = jal.array(bits, device=device)
    assert again.dtype is d
    np.testing.assert_array_equal(again.numpy(), values)
    assert a.tolist() == values.tolist()
    np.testing.assert_array_equal(np.asarray(a) if not (pinned and not d.native) else d.decode(np.asarray(a)), values)


def test_types_of_python_values(device):
    for values, d in ((1, jal.int32), (1.0, jal.float32), (True, jal.bool_), ([1, 2], jal.int32), ([1, 2**40], jal.int64),
                      ([], jal.float32),
                      (np.int64(1), jal.int64), (np.arange(3), jal.int64), (np.ones(3), jal.float32),
                      (np.float16(1), jal.float16)):
        assert jal.array(values, device=device).dtype is d, values
    assert jal.array(3.25, device=device).item() == 3.25


def test_creators(device):
    assert jal.zeros((2, 2), "int8", device).tolist() == [[0, 0], [0, 0]]
    assert jal.ones(3, jal.bfloat16, device).tolist() == [1.0] * 3
    assert jal.full((), 2.5, "float16", device).item() == 2.5
    assert jal.full(2, -7, "int64", device).tolist() == [-7, -7]
    assert jal.arange(4, device=device).tolist() == [0, 1, 2, 3]
    assert jal.empty(3, pinned=True, device=device).tolist() == [0.0] * 3
    a = jal.ones((2, 3), "int8", device)
    assert (jal.empty_like(a).shape, jal.zeros_like(a, "float32").dtype) == ((2, 3), jal.float32)
    assert jal.asarray(a) is a and jal.asarray(a, "int8", device) is a
    assert jal.asarray(a, "float32").dtype is jal.float32
    assert jal.array(a, device=device).memory is not a.memory
    assert jal.empty((np.int64(2), 3), device=device, stream=device.stream).shape == (2, 3)


@pytest.mark.parametrize("shape, kind, text", [
    (-1, ValueError, "shape (-1,), expected extents of at least 0"),
    ((2, -3), ValueError, "shape (2, -3), expected extents of at least 0"),
    (2**70, ValueError, "shape (1180591620717411303424,) of float32 takes more bytes than fit 63 bits"),
    ((2**40, 2**40), ValueError, "of float32 takes more bytes than fit 63 bits"),
    ((0, 2**63), ValueError, "takes more bytes than fit 63 bits"),
    ((1,) * 9, ValueError, "shape (1, 1, 1, 1, 1, 1, 1, 1, 1), expected at most 8 dimensions"),
    ("abc", TypeError, "shape 'abc', expected an int or a sequence of ints"),
    (1.5, TypeError, "shape 1.5, expected an int or a sequence of ints"),
    ((2, 1.5), TypeError, "shape (2, 1.5), expected an int"), (2**40, jal.OutOfMemoryError, "no 4398046511104 bytes of HBM")])
def test_bad_shapes(device, refuses, shape, kind, text):
    with refuses(kind, text):
        jal.empty(shape, device=device)


def test_bad_values(device, refuses):
    for values, text in (([1 + 2j], "NumPy type complex128 has no element type here"),
                         (["a"], "NumPy type <U1 has no element type here"),
                         (np.uint16([1]), "NumPy type uint16 has no element type here"),
                         (None, "NumPy type object has no element type here")):
        with refuses(TypeError, text):
            jal.array(values, device=device)
    with refuses(TypeError, "values of NumPy type <U1, expected numbers"):
        jal.array(["a"], "float32", device)
    with refuses(ValueError, "inhomogeneous shape"):
        jal.array([[1], [1, 2]], device=device)
    assert jal.array(np.uint16([7]), "int32", device).tolist() == [7]
    assert jal.array(np.arange(3, dtype=">f4"), "float32", device).tolist() == [0, 1, 2]


def test_one_element(device, refuses):
    a = jal.array([[2.5]], device=device)
    assert a.item() == 2.5 and float(a) == 2.5 and int(a) == 2 and bool(a) is True and len(a) == 1
    b = jal.zeros((2, 3), device=device)
    for f in (b.item, lambda: bool(b), lambda: float(b), lambda: int(b)):
        with refuses(ValueError, "item() of an array of shape (2, 3), expected one element"):
            f()
    with refuses(TypeError, "len() of an array of no dimensions"):
        len(jal.zeros((), device=device))
    with refuses(TypeError, "not a container"):
        2.0 in b  # noqa: B015
    assert [r.shape for r in b] == [(3,), (3,)]


# ---- Memory that is shared ----
@pytest.mark.parametrize("d", NATIVE, **IDS)
def test_pinned_memory_is_numpys(device, d):
    a = jal.zeros((4, 6), d, device, pinned=True)
    n, view, flat = a.numpy(), memoryview(a), np.frombuffer(a, d.numpy)
    assert np.shares_memory(n, np.asarray(a)) and np.shares_memory(n, flat)
    assert view.shape == (4, 6) and view.strides == a.strides and view.itemsize == d.itemsize and not view.readonly
    assert np.asarray(view).dtype == d.numpy and n.flags.writeable
    n[1, 2] = 1
    assert a[1].copy().numpy()[2] == 1
    a[3, 5] = 1
    device.synchronize()
    assert flat[23] == 1 and np.asarray(a[:, ::2]).strides == (6 * d.itemsize, 2 * d.itemsize)


def test_kernels_work_in_pinned_memory(device):
    a = jal.array(np.arange(8, dtype=np.float32), pinned=True, device=device)
    seen = np.asarray(a)
    jal.ops.multiply(a, 2.0, out=a)
    assert a.numpy().tolist() == [2.0 * k for k in range(8)]
    assert seen.tolist() == a.tolist()


def test_array_interface(device, refuses):
    a = jal.array(np.arange(6, dtype=np.int32).reshape(2, 3), pinned=True, device=device)
    i = a[:, 1:].__array_interface__
    assert i == {"version": 3, "shape": (2, 2), "typestr": "<i4", "strides": (12, 4), "data": (a.pointer + 4, False)}
    d = jal.zeros(3, device=device)
    with refuses(AttributeError, "an array in device memory has no __array_interface__; use .numpy()"):
        d.__array_interface__
    assert not hasattr(d, "__array_interface__")
    with refuses(BufferError, "the array lies in device memory; .numpy() copies it to the host"):
        memoryview(d)
    with pytest.raises(BufferError):
        np.frombuffer(d, np.float32)


def test_buffers_keep_memory_and_forbid_free(device, refuses):
    a = jal.array([1.0, 2.0], pinned=True, device=device)
    n = a.numpy()
    with refuses(jal.IllegalStateError, "1 buffers of the array's memory are still in use"):
        a.free()
    del a
    gc.collect()
    assert n.tolist() == [1.0, 2.0]
    b = jal.zeros(3, pinned=True, device=device)
    view = memoryview(b)
    view.release()
    b.free()
    with refuses(BufferError, "the array's memory was freed"):
        memoryview(b)


def test_buffer_requests(device, refuses):
    a = jal.array(np.arange(6, dtype=np.int32).reshape(2, 3), pinned=True, device=device)
    assert bytes(a) == np.arange(6, dtype=np.int32).tobytes(), "what it is made of is there at once"
    assert bytes(jal.full((2, 3), 7, "int8", device, pinned=True)) == b"\x07" * 6
    simple, strides, c, f, either = 0, 0x18, 0x38, 0x58, 0x98
    for array, allowed in ((a, (simple, strides, c, either)), (a[:, ::2], (strides,)), (a.T, (strides,)),
                           (a[0], (simple, strides, c, f, either))):
        for flags in (simple, strides, c, f, either):
            view = ctypes.create_string_buffer(256)
            if flags in allowed:
                ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(array), view, flags)
                ctypes.pythonapi.PyBuffer_Release(view)
            else:
                with refuses(BufferError, "contiguous"):
                    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(array), view, flags)
    a.free()


def test_read_only_memory(refuses):
    from jalapeno.array import _of_numpy
    a = _of_numpy(np.frombuffer(bytes(8), np.float32), jal.float32)
    assert not a.writable and memoryview(a).readonly and not a.numpy().flags.writeable and a.__array_interface__["data"][1]
    assert not a[1:].writable and not a.reshape(1, 2).writable
    for write in (lambda: a.fill(1), lambda: a.copy_from([1, 2])):
        with refuses(ValueError, "read-only"):
            write()
    with refuses(BufferError, "the array is read-only, which a DLPack capsule cannot tell"):
        a.__dlpack__()
    assert a.copy().writable


def test_numpy_waits_for_the_stream(device, stream):
    t = jal.Timeline(device)
    for pinned in (False, True):
        a = jal.zeros(1024, device=device, pinned=pinned)
        device.synchronize()
        value = t.value + 1
        with stream:
            stream.wait(t, value)
            a.fill(3)
            threading.Timer(0.05, lambda: t.signal(value)).start()
            assert a.numpy()[1023] == 3


# ---- DLPack ----
@pytest.mark.parametrize("d", [d for d in NATIVE if d.name != "bool"], **IDS)
def test_dlpack_to_numpy_and_back(device, d):
    a = jal.array(random(d, (3, 4)), d, device, pinned=True)
    n = np.from_dlpack(a[:, 1:])
    assert np.shares_memory(n, np.asarray(a)) and n.dtype == d.numpy and n.strides == (4 * d.itemsize, d.itemsize)
    np.testing.assert_array_equal(n, a.numpy()[:, 1:])
    source = random(d, (3, 4), 1)
    b = jal.from_dlpack(source)
    assert b.place == "host" and b.device is None and b.dtype is d and np.shares_memory(b.numpy(), source)
    source[0, 0] = 0
    assert b.numpy()[0, 0] == 0
    on = b.to(device)
    assert on.place == "device" and on.tolist() == source.tolist()
    c = jal.from_dlpack(source.T[1:])
    assert c.strides == source.T[1:].strides and c.copy().tolist() == source.T[1:].tolist()


def test_dlpack_of_device_arrays(device, refuses):
    a = jal.array([1.0, 2.0, 3.0], device=device)
    assert a.__dlpack_device__() == (12, 0) and jal.zeros(1, device=device, pinned=True).__dlpack_device__() == (1, 0)
    b = jal.from_dlpack(a[1:])
    assert b.device is device and b.memory is a.memory and b.tolist() == [2.0, 3.0]
    with refuses(RuntimeError, "Unsupported device in DLTensor"):
        np.from_dlpack(a)
    with refuses(TypeError, "__dlpack__(stream='x'), expected None or an int"):
        a.__dlpack__(stream="x")


def test_dlpack_refuses(refuses):
    with refuses(TypeError, "from_dlpack of a int, expected an array with __dlpack__"):
        jal.from_dlpack(3)
    with refuses(jal.InvalidValueError, "DLPack type code 2 of 64 bits has no element type here"):
        jal.from_dlpack(np.ones(3))
    with refuses(jal.InvalidValueError, "a DLPack tensor with strides (-4,): cannot run backwards"):
        jal.from_dlpack(np.ones(3, np.float32)[::-1])

    class Elsewhere:
        def __dlpack_device__(self):
            return (2, 0)
    with refuses(ValueError, "DLPack device type 2, expected 1 (CPU) or 12 (this library's)"):
        jal.from_dlpack(Elsewhere())


class Owner(np.ndarray):
    """An array that can be weakly referenced and tells when it is gone."""


def test_dlpack_lifetimes(device, refuses):
    source = np.arange(4, dtype=np.float32).view(Owner)
    gone = weakref.ref(source)
    a = jal.from_dlpack(source)
    del source
    gc.collect()
    assert gone() is not None and a.tolist() == [0, 1, 2, 3]
    view = a[1:]
    del a
    gc.collect()
    assert view.tolist() == [1, 2, 3]
    del view
    gc.collect()
    assert gone() is None
    # A capsule that nobody takes gives its memory back; one that was taken cannot be taken again.
    with jal.Device("emu:?hbm=256M") as d:
        baseline = d.memory_info()
        capsule = jal.empty(1 << 22, device=d).__dlpack__()
        d.trim()
        assert d.memory_info() != baseline
        del capsule
        d.trim()
        assert d.memory_info() == baseline
    p = jal.array([5.0, 6.0], pinned=True, device=device)
    capsule = p.__dlpack__()
    b = jal.Array(jal._core.from_dlpack(capsule))
    with refuses(jal.InvalidValueError, 'expected a fresh DLPack capsule named "dltensor"'):
        jal._core.from_dlpack(capsule)
    del p, capsule
    gc.collect()
    assert b.tolist() == [5.0, 6.0]
    n = np.from_dlpack(b)
    del b
    gc.collect()
    assert n.tolist() == [5.0, 6.0]


def test_dlpack_with_torch(device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    a = jal.array(np.arange(6, dtype=np.float32).reshape(2, 3), pinned=True, device=device)
    t = torch.from_dlpack(a)
    t[0, 0] = 9
    assert a.numpy()[0, 0] == 9 and jal.from_dlpack(t).tolist() == t.tolist()
    assert jal.from_dlpack(torch.ones(3, dtype=torch.bfloat16)).dtype is jal.bfloat16


# ---- Views ----
def test_bad_indices(device, refuses):
    a = jal.zeros((2, 3), device=device)
    for key, text in ((5, "index 5 is out of bounds for axis 0 with 2 elements"),
                      ((0, -4), "index -4 is out of bounds for axis 1 with 3 elements"),
                      ((0, 0, 0), "3 indices for an array of 2 dimensions"), ((..., ...), "more than one ... in an index"),
                      (slice(None, None, -1), "slice step -1, expected above 0: device arrays cannot run backwards"),
                      ("a", "index 'a', expected ints, slices, ... or None"), (True, "index True, expected ints"),
                      (1.5, "index 1.5, expected ints"),
                      ([0, 1], "index [0, 1], expected ints"), (np.array([True, False]), "expected ints, slices, ... or None")):
        with refuses(IndexError, text):
            a[key]
        with refuses(IndexError, text):
            a[key] = 0
    with refuses(ValueError, "slice step cannot be zero"):
        a[::0]


def test_bad_reshapes(device, refuses):
    a = jal.zeros((2, 3), device=device)
    for shape in ((7,), (-1, -1), (-2, -3), (4, -1), (0, -1), ()):
        with refuses(ValueError, f"cannot reshape (2, 3) to {shape}"):
            a.reshape(*shape) if shape else a.reshape(())
    for shape in ("ab", 2.5, (2, 3.0)):
        with refuses(TypeError, "expected an int or a sequence of ints"):
            a.reshape(shape)
    assert a.reshape(np.int64(6)).shape == (6,) and a.reshape((3, -1)).shape == (3, 2) and a.reshape([6]).shape == (6,)
    for axes in ((0, 0), (0,), (0, 1, 2), (0, 5)):
        with refuses(ValueError, f"transpose{axes} of an array of 2 dimensions"):
            a.transpose(*axes)
    assert a.transpose((1, 0)).shape == (3, 2) == a.transpose(-1, 0).shape == a.T.shape
    with refuses(ValueError, "view of jalapeno.float32 as jalapeno.float16: the element sizes are 4 and 2"):
        a.view("float16")
    assert jal.array([1.0], device=device).view("int32").tolist() == [0x3F800000]


def test_bad_assignments(device, refuses):
    a = jal.zeros((2, 3), device=device)
    for value, kind, text in ((np.zeros(2), ValueError, "copy of shape (2,) into (2, 3)"),
                              ("a", TypeError, "values of NumPy type <U1, expected numbers"),
                              (jal.zeros(3, device=device), ValueError, "copy of shape (3,) into (2, 3)"),
                              (jal.zeros((2, 3), "int32", device), TypeError,
                               "copy of jalapeno.int32 into jalapeno.float32; convert with .astype()")):
        with refuses(kind, text):
            a[:] = value
    with refuses(ValueError, "fill with a value of shape (2,), expected a number"):
        a.fill([1, 2])
    with refuses(ValueError, "copy of shape (2,) into ()"):
        a[0, 0] = [1, 2]
    with refuses(ValueError, "astype(jalapeno.int8) of shape (2, 3): out is jalapeno.int8 (3, 2)"):
        a.astype("int8", out=jal.zeros((3, 2), "int8", device))


def test_overlapping_assignment(device):
    a, n = jal.arange(10, device=device), np.arange(10, dtype=np.int32)
    a[1:] = a[:-1]
    n[1:] = n[:-1].copy()
    a[:5] = a[5:]
    n[:5] = n[5:].copy()
    assert a.tolist() == n.tolist()


def keys(draw, shape):
    """An index that NumPy and Array both take."""
    key = []
    for n in shape[:draw(st.integers(0, len(shape)))]:
        if n and draw(st.booleans()):
            key.append(draw(st.integers(-n, n - 1)))
        else:
            key.append(slice(draw(st.none() | st.integers(-n - 1, n + 1)), draw(st.none() | st.integers(-n - 1, n + 1)),
                             draw(st.none() | st.integers(1, 3))))
    if draw(st.booleans()):
        key.insert(draw(st.integers(0, len(key))), None)
    if draw(st.booleans()):
        key.append(...)
    return tuple(key)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_chains_of_views_equal_numpys(device, data):
    """Slices, transposes and reshapes of views of the same data; writing through a view changes the whole as NumPy's does."""
    shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=4)))
    d = jal.dtype(data.draw(st.sampled_from(["float32", "int8", "int64", "bool", "float16"])))
    n = random(d, shape)
    a = jal.array(n, device=device, pinned=data.draw(st.booleans()))
    whole, original = a, n
    for _ in range(data.draw(st.integers(1, 4))):
        step = data.draw(st.sampled_from(["index", "transpose", "reshape", "assign", "fill", "copy"]))
        if step == "index":
            key = keys(data.draw, n.shape)
            if n.ndim + key.count(None) > 6:
                continue
            a, n = a[key], n[key]
            n = n if isinstance(n, np.ndarray) else np.asarray(n)
        elif step == "transpose":
            order = data.draw(st.permutations(range(n.ndim)))
            a, n = a.transpose(*order), n.transpose(order)
        elif step == "reshape":
            if not n.flags.c_contiguous:
                continue
            target = data.draw(st.sampled_from([(n.size,), (1, n.size), (n.size, 1),
                                                *([(2, n.size // 2)] if n.size % 2 == 0 else [])]))
            a, n = a.reshape(target), n.reshape(target)
        elif step == "assign" and n.ndim:
            value = random(d, n.shape[-1:], data.draw(st.integers(0, 9)))
            a[...] = value
            n[...] = value
        elif step == "fill" and n.flags.writeable:
            a.fill(1)
            n.fill(1)
        elif step == "copy":
            n2 = n.copy()
            np.testing.assert_array_equal(a.copy().numpy(), n2)
        assert a.shape == n.shape
        np.testing.assert_array_equal(a.numpy(), n)
    if np.shares_memory(n, original):
        np.testing.assert_array_equal(whole.numpy(), original)


def test_strided_copies_between_all_kinds_of_memory(device):
    n = np.arange(2 * 3 * 4 * 5, dtype=np.int32).reshape(2, 3, 4, 5)
    for source in (jal.array(n, device=device), jal.array(n, device=device, pinned=True), jal.from_dlpack(n.copy())):
        for there in (jal.zeros((4, 2, 5, 3), "int32", device), jal.zeros((4, 2, 5, 3), "int32", device, pinned=True),
                      jal.from_dlpack(np.zeros((4, 2, 5, 3), np.int32))):
            view, expected = source.transpose(2, 0, 3, 1)[::2, :, 1::2], n.transpose(2, 0, 3, 1)[::2, :, 1::2]
            there[::2, :, 1::2].copy_from(view)
            assert there[::2, :, 1::2].tolist() == expected.tolist()
            assert there[1::2].numpy().sum() == 0 and there[:, :, ::2].numpy().sum() == 0


def test_copies_stay_in_their_kind_of_memory(device):
    for a in (jal.ones((2, 3), device=device), jal.ones((2, 3), device=device, pinned=True),
              jal.from_dlpack(np.ones((2, 3), np.float32))):
        for b in (a.copy(), a.T.contiguous(), copy.copy(a), copy.deepcopy(a), a.astype("int64")):
            assert b.place == a.place and b.device is a.device and b.memory is not a.memory and b.numpy().sum() == 6
        assert a.contiguous() is a
    assert jal.ones(2, device=device).to(device).place == "device"


def test_copies_between_devices(device, refuses):
    with jal.Device("emu:?hbm=64M") as other:
        n = np.arange(12, dtype=np.float32).reshape(3, 4)
        a = jal.array(n, device=device)
        b = (a * 2).to(other)
        assert b.device is other and b.tolist() == (2 * n).tolist()
        a.copy_from(b)
        assert a.tolist() == (2 * n).tolist()
        assert jal.array(b.T, "int8", device).tolist() == (2 * n.T).tolist()
        with refuses(ValueError, "add: b is on another device than a"):
            a + b


# ---- Conversions ----
@pytest.mark.parametrize("to", DTYPES, **IDS)
@pytest.mark.parametrize("of", DTYPES, **IDS)
def test_astype_equals_the_rules_of_the_host(device, of, to):
    """Every pair of types, on the device where kernels take both and on the host otherwise: one rule."""
    values = random(of, 300)
    if of.is_float:
        values[:12] = of.decode(of.encode(np.array([0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e4, -1e4, 3e38, np.inf, -np.inf, np.nan],
                                                   np.float32)))
        values[12:100] *= 50
        values = of.decode(of.encode(values))
    elif of.numpy.kind == "i":
        values[:8] = [0, 1, -1, 127, -128, 100, 7, 3]
        if of.name == "int64":
            values[100:] >>= 24
    a = jal.array(values, of, device)
    through = values.astype(np.float32) if of.name == "int32" and to.computes and to is not of else values
    expected = to.decode(to.encode(through))
    np.testing.assert_array_equal(a.astype(to).numpy(), expected)
    np.testing.assert_array_equal(a.reshape(15, 20)[:, ::3].astype(to).numpy(), expected.reshape(15, 20)[:, ::3])
    out = jal.zeros((300, 2), to, device)
    assert a.astype(to, out=out[:, 0]).shape == (300,)
    np.testing.assert_array_equal(out.numpy()[:, 0], expected)
    assert not out.numpy()[:, 1].any()


# ---- Lifetime ----
def test_freed_arrays_are_refused(device, refuses):
    a = jal.ones((2, 3), device=device)
    view = a[0]
    a.free()
    a.free()
    assert repr(view) == "<jalapeno.Array float32 (3,), freed>"
    for use in (a.numpy, view.numpy, lambda: a + 1, lambda: a.fill(1), lambda: a.copy(), lambda: a.astype("int64"),
                lambda: a.pointer, a.tolist,
                lambda: view.copy_from([1, 2, 3]), a.__dlpack__, lambda: a @ a.T):
        with refuses(jal.InvalidHandleError, "the array's memory was freed"):
            use()


def test_pickling_is_refused(device, refuses):
    with refuses(TypeError, "an Array lives in this process; pickle its .numpy() instead"):
        pickle.dumps(jal.ones(3, device=device))


def test_ten_thousand_arrays_in_use_by_kernels():
    """Made, used by enqueued work and dropped at once: nothing is lost, nothing is overwritten."""
    with jal.Device("emu:?hbm=256M") as d, jal.Stream(d) as s:
        total = jal.zeros(256, device=d)
        jal.ops.add(total, jal.ones(256, device=d), out=total)
        s.synchronize()
        total.fill(0)
        gc.collect()
        d.synchronize()
        d.trim()
        baseline = d.memory_info()
        for k in range(10000):
            x = jal.empty(256, device=d, stream=s if k % 2 else None)
            x.fill(k % 7)
            if k % 5 == 0:
                jal.ops.add(total, x, out=total)
            del x
        s.synchronize()
        assert total.tolist() == [float(sum(k % 7 for k in range(0, 10000, 5)))] * 256
        gc.collect()
        d.synchronize()
        d.trim()
        assert d.memory_info() == baseline


def test_threads_make_arrays_and_work(device):
    errors = []

    def work(seed):
        try:
            with jal.Stream(device):
                n = random(jal.float32, (40, 30), seed)
                for _ in range(10):
                    a = jal.array(n, device=device)
                    b = (a + 1.0)[::2, 3:] * 2
                    np.testing.assert_allclose(b.numpy(), (n + 1)[::2, 3:] * 2, rtol=1e-6)
                    np.testing.assert_allclose((a @ a.T).numpy(), n @ n.T, atol=1e-4)
        except BaseException as e:  # noqa: BLE001
            errors.append(e)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(5)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert errors == []


def test_operators_equal_numpys(device):
    n = random(jal.float32, (3, 4))
    a = jal.array(n, device=device)
    for op in (operator.add, operator.sub, operator.mul, operator.truediv):
        for other in (n + 3, 2, 2.5, np.float32(2), np.float64(1.5), np.int32(3), True, n[0] + 3, (n[:, :1] + 3)):
            np.testing.assert_allclose(op(a, other).numpy(), op(n, other), rtol=1e-5)
            np.testing.assert_allclose(op(other, a).numpy(), op(other, n), rtol=1e-5)
        with pytest.raises(TypeError, match="a NoneType"):
            op(a, None)
        with pytest.raises(TypeError, match="a str"):
            op("x", a)
    np.testing.assert_array_equal((-a).numpy(), -n)
    assert (a == a) is True and a != jal.array(n, device=device)


def test_the_default_device_can_be_named():
    first = jal.default_device()
    with jal.Device("emu:?hbm=64M") as other:
        jal.set_default_device(other)
        try:
            assert jal.default_device() is other and jal.zeros(3).device is other
        finally:
            jal.set_default_device(first)
    assert jal.zeros(3).device is first
    with pytest.raises(TypeError, match="set_default_device of a str, expected a jalapeno.Device or None"):
        jal.set_default_device("emu:")

"""Every function of jalapeno.ops against NumPy in double precision, over ragged shapes, views, out= and several streams; and the
text of what is refused."""
import math

import numpy as np
import pytest

import jalapeno as jal
from jalapeno import ops

SHAPES = [(), (1,), (7,), (4096,), (4097,), (3, 5), (2, 3, 1000), (1, 2, 3, 4), (0,), (3, 0)]


def values(shape, seed=0, low=-3.0, high=3.0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def close(a, expected, rtol=2e-6, atol=2e-6):
    """a: an Array; expected: float64."""
    seen = a.numpy()
    assert seen.shape == expected.shape
    np.testing.assert_allclose(seen.astype(np.float64), expected, rtol=rtol, atol=atol)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY = {"negative": np.negative, "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
         "tanh": np.tanh,
         "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "silu": lambda x: x / (1 + np.exp(-x)), "gelu": gelu,
         "relu": lambda x: np.maximum(x, 0),
         "sin": np.sin, "cos": np.cos, "floor": np.floor, "abs": np.abs}
BINARY = {"add": np.add, "subtract": np.subtract, "multiply": np.multiply, "divide": np.divide, "maximum": np.maximum,
          "minimum": np.minimum,
          "less": np.less, "less_equal": np.less_equal, "equal": np.equal}
POSITIVE = ("log", "sqrt", "rsqrt")


def test_every_function_is_tested():
    here = {*UNARY, *BINARY, "argmax", "attention", "convert", "embedding", "linear", "matmul", "rmsnorm", "rope", "softmax",
            "swiglu", "topk", "transpose", "sum", "mean", "max", "min"}
    assert here == set(ops.__all__)
    for name in ops.__all__:
        assert getattr(ops, name).__doc__


@pytest.mark.parametrize("name", UNARY)
def test_unary(device, name):
    f = getattr(ops, name)
    for shape in SHAPES:
        x = values(shape, low=0.01 if name in POSITIVE else -3.0)
        close(f(jal.array(x, device=device)), UNARY[name](x.astype(np.float64)))
    x = values((6, 50), 1, 0.01)
    a = jal.array(x, device=device)
    close(f(a[::2, 3:]), UNARY[name](x[::2, 3:].astype(np.float64)))
    close(f(a.T), UNARY[name](x.T.astype(np.float64)))
    out = jal.zeros((6, 100), device=device)
    assert f(a, out=out[:, ::2]).shape == (6, 50)
    close(out[:, ::2], UNARY[name](x.astype(np.float64)))
    assert not out[:, 1::2].numpy().any()
    low = jal.empty((6, 50), jal.bfloat16, device)
    assert f(a, out=low) is low
    close(low, UNARY[name](x.astype(np.float64)), rtol=2**-8, atol=1e-5)
    f(a, out=a)
    close(a, UNARY[name](x.astype(np.float64)))


@pytest.mark.parametrize("name", BINARY)
def test_binary(device, name):
    f, g = getattr(ops, name), BINARY[name]
    for shape in SHAPES:
        x, y = values(shape, 1), values(shape, 2, 0.5)
        close(f(jal.array(x, device=device), jal.array(y, device=device)),
              g(x.astype(np.float64), y.astype(np.float64)).astype(np.float64))
    x = values((4, 3, 130), 3).round()
    a, x64 = jal.array(x, device=device), x.astype(np.float64)
    for other in (values(130, 4).round(), values((1, 1, 130), 5).round(), values((4, 3, 1), 6).round(),
                  values((4, 3, 130), 7).round(), values((1, 1, 1)),
                  np.float32(2), np.array(1.5, np.float32)):
        other = np.where(other == 0, np.float32(1), other)
        b, y64 = jal.array(other, device=device), other.astype(np.float64)
        close(f(a, b), g(x64, y64).astype(np.float64))
        if name != "divide":
            close(f(b, a), g(y64, x64).astype(np.float64))
        close(f(a, other.astype(np.float32)), g(x64, y64).astype(np.float64))
    for number in (2, -0.5, True, np.float32(1.5), np.float64(-1), np.int64(3)):
        close(f(a, number), g(x64, float(number)).astype(np.float64))
        if name != "divide":
            close(f(number, a), g(float(number), x64).astype(np.float64))
    out = jal.zeros((4, 3, 260), device=device)
    f(a, a, out=out[..., ::2])
    with np.errstate(divide="ignore", invalid="ignore"):
        close(out[..., ::2], g(x64, x64).astype(np.float64))
    integers = jal.array(np.arange(-5, 5, dtype=np.int32), device=device)
    close(f(integers, 2), g(np.arange(-5.0, 5.0), 2.0).astype(np.float64))
    whole = jal.empty(10, "int32", device)
    if name != "divide":
        f(integers, integers, out=whole)
        assert whole.tolist() == g(np.arange(-5, 5), np.arange(-5, 5)).astype(int).tolist()


def test_elementwise_refuses(device, refuses):
    a = jal.ones((2, 3), device=device)
    for call, kind, text in (
            (lambda: ops.exp(np.ones(3)), TypeError,
             "exp: x is a ndarray, expected a jalapeno.Array; jalapeno.array(x) makes one"),
            (lambda: ops.exp(jal.ones(3, "int64", device)), TypeError, "exp: x is int64, which kernels do not take"),
            (lambda: ops.exp(jal.from_dlpack(np.ones(3, np.float32))), ValueError,
             "exp: x lies in host memory the device does not reach"),
            (lambda: ops.exp(a, out=jal.ones((3, 2), device=device)), ValueError, "exp: out has shape (3, 2), expected (2, 3)"),
            (lambda: ops.exp(a, out=np.ones((2, 3))), TypeError, "exp: out is a ndarray, expected a jalapeno.Array"),
            (lambda: ops.add(1, 2), TypeError, "add of int and int, expected at least one jalapeno.Array"),
            (lambda: ops.add(a, jal.ones((4, 3), device=device)), ValueError, "add: shapes (2, 3) and (4, 3) do not broadcast"),
            (lambda: ops.add(jal.ones((2, 1), device=device), jal.ones((1, 3), device=device)), ValueError,
             "add: broadcasting (2, 1) with (1, 3) is not supported; one operand must have the result's shape"),
            (lambda: ops.add(jal.ones((2, 3, 4), device=device), jal.ones((3, 4), device=device)), ValueError,
             "add: broadcasting (2, 3, 4) with (3, 4)"),
            (lambda: ops.add(a, "x"), TypeError, "add: b is a str: NumPy type <U1 has no element type here"),
            (lambda: ops.add([1, 2, 3, 4], a), ValueError, "add: shapes (4,) and (2, 3) do not broadcast"),
            (lambda: ops.add(a, jal.ones(3, "bool", device)), TypeError, "add: b is bool, which kernels do not take")):
        with refuses(kind, text):
            call()


def test_other_devices_are_refused(device, refuses):
    with jal.Device("emu:?hbm=64M") as other:
        a, b = jal.ones((2, 2), device=device), jal.ones((2, 2), device=other)
        with refuses(ValueError, "multiply: b is on another device than a"):
            a * b
        with refuses(ValueError, "exp: out is on another device"):
            ops.exp(a, out=b)
        with refuses(ValueError, "matmul: b is on another device than a"):
            a @ b
        with refuses(ValueError, "softmax: out is on another device"):
            ops.softmax(a, out=b)


# ---- Matrices ----
@pytest.mark.parametrize("m, k, n", [(1, 1, 1), (1, 300, 5), (7, 33, 130), (16, 64, 64), (17, 129, 31), (65, 70, 257),
                                     (300, 17, 40), (0, 3, 4), (3, 0, 4),
                                     (3, 4, 0)])
def test_matmul(device, m, k, n):
    x, y = values((m, k), 1), values((k, n), 2)
    a, b = jal.array(x, device=device), jal.array(y, device=device)
    expected = x.astype(np.float64) @ y.astype(np.float64)
    tolerance = dict(rtol=0, atol=1e-5 * math.sqrt(max(k, 1)) * 3)
    close(a @ b, expected, **tolerance)
    close(ops.linear(a, b.T.contiguous()), expected, **tolerance)
    w = jal.array(y.T.copy(), device=device)
    close(a @ w.T, expected, **tolerance)
    close(jal.array(x.T.copy(), device=device).T @ b, expected, **tolerance)
    out = jal.zeros((m, 2 * n), device=device)
    ops.matmul(a, b, out=out[:, n:])
    close(out[:, n:], expected, **tolerance)
    assert not out[:, :n].numpy().any()
    ops.matmul(a, b, out=out[:, ::2])
    close(out[:, ::2], expected, **tolerance)
    ops.linear(a, w, out=out[:, ::2], accumulate=True)
    close(out[:, ::2], 2 * expected, **tolerance)


def test_matmul_of_vectors(device):
    x, v, w = values((5, 40), 1), values(40, 2), values(5, 3)
    a = jal.array(x, device=device)
    strided = jal.array(np.repeat(v, 2), device=device)[::2]
    for b in (jal.array(v, device=device), strided):
        close(a @ b, x.astype(np.float64) @ v, atol=1e-4)
        close(b @ b, np.asarray(v.astype(np.float64) @ v), atol=1e-4)
    close(jal.array(w, device=device) @ a, w.astype(np.float64) @ x, atol=1e-4)
    out = jal.zeros((5, 2), device=device)
    ops.matmul(a, strided, out=out[:, 1])
    close(out[:, 1], x.astype(np.float64) @ v, atol=1e-4)


@pytest.mark.parametrize("name, relative",
                         [("float32", 1e-6), ("bfloat16", 2**-9), ("float16", 2**-12), ("float8_e4m3", 2**-9),
                          ("float8_e5m2", 2**-9)])
@pytest.mark.parametrize("m", [3, 40])
def test_linear_of_types(device, name, relative, m):
    """Weights are exact as stored, activations are rounded once; docs/kernels.md tells the tolerance."""
    d = jal.dtype(name)
    x, w = values((m, 100), 1, -1, 1), d.decode(d.encode(values((50, 100), 2, -1, 1)))
    expected = x.astype(np.float64) @ w.T.astype(np.float64)
    tolerance = 6 * relative / math.sqrt(3) * np.linalg.norm(w, axis=1).max() + 1e-5
    close(ops.linear(jal.array(x, device=device), jal.array(w, d, device)), expected, rtol=0, atol=tolerance)
    close(ops.linear(jal.array(x, jal.float16, device), jal.array(w, d, device)), expected, rtol=0, atol=tolerance + 2**-10 * 6)


@pytest.mark.parametrize("m", [2, 33])
def test_linear_of_int8_is_exact(device, m):
    rng = np.random.default_rng(1)
    x, w = rng.integers(-128, 128, (m, 70)).astype(np.int8), rng.integers(-128, 128, (30, 70)).astype(np.int8)
    expected = x.astype(np.int64) @ w.T.astype(np.int64)
    a, b = jal.array(x, device=device), jal.array(w, device=device)
    assert (ops.linear(a, b).numpy() == expected).all()
    assert (ops.matmul(a, b.T).numpy() == expected).all()
    assert (ops.matmul(a, jal.array(w.T.copy(), device=device)).numpy() == expected).all()


def test_transpose(device):
    for shape in ((1, 1), (3, 5), (256, 256), (257, 300), (0, 4)):
        x = values(shape)
        close(ops.transpose(jal.array(x, device=device)), x.T.astype(np.float64), 0, 0)
    for d in (jal.int8, jal.bfloat16, jal.int32):
        x = jal.array(np.arange(12).reshape(3, 4), d, device)
        assert ops.transpose(x).dtype is d and ops.transpose(x).tolist() == np.arange(12).reshape(3, 4).T.tolist()
    out = jal.zeros((5, 8), device=device)
    ops.transpose(jal.array(values((4, 5)), device=device), out=out[:, ::2])
    close(out[:, ::2], values((4, 5)).T.astype(np.float64), 0, 0)


def test_matrices_refuse(device, refuses):
    a, w, i8, i32 = (jal.ones((2, 3), d, device) for d in ("float32", "float32", "int8", "int32"))
    cube = jal.ones((2, 3, 1), device=device)
    for call, kind, text in (
            (lambda: a @ w, ValueError, "matmul: shapes (2, 3) and (2, 3) do not fit: 3 columns and 2 rows"),
            (lambda: ops.matmul(cube, a), ValueError, "matmul: a has shape (2, 3, 1), expected 1 or 2 dimensions"),
            (lambda: a @ np.ones((3, 2)), TypeError, "matmul: b is a ndarray, expected a jalapeno.Array"),
            (lambda: ops.matmul(a, w.T, out=a), ValueError, "matmul: out has shape (2, 3), expected (2, 2)"),
            (lambda: ops.matmul(a, w.T, out=jal.ones((2, 2), "int32", device)), TypeError,
             "matmul: out is int32, expected float32"),
            (lambda: ops.linear(a, jal.ones((2, 4), device=device)), ValueError,
             "linear: a has shape (2, 3) and w (2, 4), expected [m, k] and [n, k] with one k"),
            (lambda: ops.linear(a, w, accumulate=True), ValueError, "linear: accumulate=True needs out"),
            (lambda: ops.linear(a, i8), TypeError, "linear: a is float32 and w int8, expected int8 for both"),
            (lambda: ops.linear(i8, w), TypeError, "linear: a is int8 and w float32, expected a float type for a"),
            (lambda: ops.linear(a, i32), TypeError, "linear: w is int32, expected float32, bfloat16, float16"),
            (lambda: ops.transpose(cube), ValueError, "transpose: x has shape (2, 3, 1), expected 2 dimensions")):
        with refuses(kind, text):
            call()


# ---- Rows ----
ROWS = [(1,), (5,), (3, 700), (2, 3, 33), (2, 2, 2, 5), (0, 4), (3, 0)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True)) if x.size else x
    return e / e.sum(-1, keepdims=True)


def test_softmax(device):
    for shape in ROWS:
        x = values(shape, 1, -20, 20)
        close(ops.softmax(jal.array(x, device=device)), softmax(x.astype(np.float64)))
    x = values((6, 80))
    a, out = jal.array(x, device=device), jal.zeros((3, 60), device=device)
    ops.softmax(a[::2, 50:], out=out[:, ::2])
    close(out[:, ::2], softmax(x[::2, 50:].astype(np.float64)))
    ops.softmax(a, out=a)
    close(a, softmax(x.astype(np.float64)))


def test_rmsnorm_and_swiglu(device):
    for shape in ROWS:
        x, w, up = values(shape, 1), values(shape[-1:], 2), values(shape, 3)
        a, x64 = jal.array(x, device=device), x.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            expected = x64 / np.sqrt((x64**2).sum(-1, keepdims=True) / max(shape[-1], 1) + 1e-3) * w
        close(ops.rmsnorm(a, jal.array(w, device=device), 1e-3), expected, 1e-5, 1e-5)
        low = jal.empty(shape, jal.bfloat16, device)
        close(ops.rmsnorm(a, jal.array(w, device=device), 1e-3, out=low), expected, 2**-8, 1e-5)
        close(ops.swiglu(a, jal.array(up, device=device)), UNARY["silu"](x64) * up, 1e-5, 1e-5)
    x = values((2, 9000))
    close(ops.swiglu(jal.array(x, device=device), jal.array(x, device=device)), UNARY["silu"](x.astype(np.float64)) * x, 1e-5,
          1e-5)


def test_argmax_and_topk(device):
    for shape in ((1,), (50,), (4, 33), (3, 5000)):
        x = np.random.default_rng(2).permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
        a = jal.array(x, device=device)
        index = ops.argmax(a)
        assert index.dtype is jal.int32 and index.tolist() == x.argmax(-1).tolist()
        k = min(10, shape[-1])
        top, where = ops.topk(a, k)
        order = np.argsort(-x, axis=-1)[..., :k]
        assert where.tolist() == order.tolist() and top.tolist() == np.take_along_axis(x, order, -1).tolist()
    ties = jal.array([[1.0, 3.0, 3.0, 2.0]], device=device)
    assert ops.argmax(ties).tolist() == [1]
    out = jal.zeros((2, 2), "int32", device)
    ops.argmax(jal.array([[1.0, 2.0], [2.0, 1.0]], device=device), out=out[0])
    assert out.tolist() == [[1, 0], [0, 0]]
    assert ops.argmax(jal.zeros((0, 3), device=device)).shape == (0,) and ops.topk(jal.zeros((0, 3), device=device),
                                                                                   2)[0].shape == (0, 2)


def test_embedding(device):
    table = values((10, 70))
    tokens = [3, 0, 9, 3, 10, -1, 2**31 - 1]
    expected = np.stack([table[t] if 0 <= t < 10 else np.zeros(70) for t in tokens]).astype(np.float64)
    for d in (jal.float32, jal.bfloat16, jal.float16):
        close(ops.embedding(jal.array(table, d, device), jal.array(tokens, device=device)), expected, 2**-8, 1e-6)
    assert ops.embedding(jal.array(table, device=device), jal.array([], "int32", device)).shape == (0, 70)


def rotated(x, cosine, sine, position, head, interleaved):
    t, width = x.shape
    r = 2 * cosine.shape[1]
    out = x.astype(np.float64).reshape(t, width // head, head).copy()
    c, s = (v[position:position + t, None].astype(np.float64) for v in (cosine, sine))
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    a, b = out[..., first].copy(), out[..., second].copy()
    out[..., first], out[..., second] = a * c - b * s, a * s + b * c
    return out.reshape(t, width)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("head, r, position", [(16, 16, 0), (32, 8, 5), (64, 64, 3)])
def test_rope(device, head, r, position, interleaved):
    x = values((7, 3 * head))
    angle = np.arange(12)[:, None] * 10000.0 ** (-np.arange(r // 2) / (r // 2))
    cosine, sine = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = ops.rope(jal.array(x, device=device), jal.array(cosine, device=device), jal.array(sine, device=device), position,
                   head=head, interleaved=interleaved)
    close(got, rotated(x, cosine, sine, position, head, interleaved), 1e-5, 1e-5)


def attention(q, k, v, position, scale):
    heads, t, d = q.shape
    kv = k.shape[1] // d
    out = np.zeros(q.shape)
    for h in range(heads):
        at = slice(h // (heads // kv) * d, (h // (heads // kv) + 1) * d)
        for i in range(t):
            n = position + i + 1
            p = softmax((q[h, i] @ k[:n, at].T.astype(np.float64)) * scale)
            out[h, i] = p @ v[:n, at].astype(np.float64)
    return out


@pytest.mark.parametrize("name, tolerance", [("float32", 5e-6), ("float16", 3e-3), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("heads, kv, t, d, position", [(2, 2, 5, 16, 0), (4, 2, 70, 32, 0), (4, 1, 3, 64, 40), (1, 1, 1, 16, 99)])
def test_attention(device, heads, kv, t, d, position, name, tolerance):
    kind = jal.dtype(name)
    q = values((heads, t, d), 1, -1, 1)
    k, v = (kind.decode(kind.encode(values((128, kv * d), seed, -1, 1))).astype(np.float32) for seed in (2, 3))
    a, b, c = jal.array(q, device=device), jal.array(k, kind, device), jal.array(v, kind, device)
    close(ops.attention(a, b, c, position=position), attention(q.astype(np.float64), k, v, position, d**-0.5), 0, tolerance)
    close(ops.attention(a, b, c, position=position, scale=0.5), attention(q.astype(np.float64), k, v, position, 0.5), 0,
          tolerance)


def test_rows_refuse(device, refuses):
    x, w = jal.ones((2, 8), device=device), jal.ones(8, device=device)
    table, tokens = jal.ones((4, 4), device=device), jal.array([1, 2], device=device)
    q, k = jal.ones((2, 3, 4), device=device), jal.ones((8, 4), device=device)
    half = x.astype("float16")
    for call, kind, text in (
            (lambda: ops.softmax(jal.ones((), device=device)), ValueError,
             "softmax: x has shape (), expected 1 or 2 or 3 or 4 dimensions"),
            (lambda: ops.softmax(half), TypeError, "softmax: x is float16, expected float32"),
            (lambda: ops.softmax(x, out=half), TypeError, "softmax: out is float16, expected float32"),
            (lambda: ops.rmsnorm(x, w[:4]), ValueError, "rmsnorm: x has shape (2, 8) and weight (4,), expected (8,)"),
            (lambda: ops.rmsnorm(x, x), ValueError, "rmsnorm: weight has shape (2, 8), expected 1 dimensions"),
            (lambda: ops.rmsnorm(jal.ones((1, 16385), device=device), jal.ones(16385, device=device)), ValueError,
             "rmsnorm: rows of 16385, expected at most 16384"),
            (lambda: ops.swiglu(x, x[:1]), ValueError, "swiglu: gate has shape (2, 8) and up (1, 8), expected one shape"),
            (lambda: ops.argmax(x[:, :0]), ValueError, "argmax: x has shape (2, 0), expected at least one column"),
            (lambda: ops.topk(x, 9), ValueError, "topk: k is 9, expected 1 to 8"),
            (lambda: ops.topk(x, 0), ValueError, "topk: k is 0, expected 1 to 8"),
            (lambda: ops.topk(x, 1.5), ValueError, "topk: k is 1.5, expected 1 to 8"),
            (lambda: ops.embedding(table, tokens.astype("float32")), TypeError, "embedding: tokens is float32, expected int32"),
            (lambda: ops.embedding(w, tokens), ValueError, "embedding: table has shape (8,), expected 2 dimensions"),
            (lambda: ops.rope(x, table, table, head=4), ValueError,
             "rope: x has shape (2, 8), heads of 4, cosine (4, 4), sine (4, 4); expected"),
            (lambda: ops.rope(x, table, table, 3, head=8), ValueError, "rope: positions 3 to 4, expected 0 to 3"),
            (lambda: ops.rope(x, table, table, -1, head=8), ValueError, "rope: positions -1 to 0, expected 0 to 3"),
            (lambda: ops.rope(x, table, table, 0.5, head=8), TypeError, "rope: position is 0.5, expected an int"),
            (lambda: ops.attention(q, k, k, position=6), ValueError, "attention: positions 6 to 8, expected 0 to 7"),
            (lambda: ops.attention(q, k, k[:4]), ValueError,
             "attention: k is float32 (8, 4) and v float32 (4, 4), expected one type and shape"),
            (lambda: ops.attention(q, jal.ones((8, 6), device=device), jal.ones((8, 6), device=device)), ValueError,
             "attention: q has shape (2, 3, 4) and k (8, 6), expected k of kv_heads * 4 columns, heads a multiple of kv_heads"),
            (lambda: ops.attention(q, k, k, position=0.5), TypeError, "attention: position is 0.5, expected an int"),
            (lambda: ops.attention(x, k, k), ValueError, "attention: q has shape (2, 8), expected 3 dimensions")):
        with refuses(kind, text):
            call()


# ---- Streams ----
def test_streams_work_side_by_side(device):
    """Results of one stream are used by another after an event, and none disturbs the other."""
    streams = [jal.Stream(device) for _ in range(3)]
    results = []
    for n, s in enumerate(streams):
        with s:
            x = jal.full((40, 50), float(n + 1), device=device)
            for _ in range(5):
                x = x * 2.0 + 1.0
            results.append(x @ x.T)
            done = jal.Event(device)
            done.record()
        device.stream.wait(done)
    total = results[0] + results[1] + results[2]
    expected = sum(50.0 * ((n + 1) * 32 + 31) ** 2 for n in range(3))
    assert total.numpy()[3, 4] == expected


def test_ops_in_a_graph(device, stream):
    x, w, out = jal.ones((4, 8), device=device), jal.full((8, 8), 0.5, device=device), jal.empty((4, 8), device=device)
    ops.softmax(ops.linear(x, w))
    device.synchronize()
    with stream, stream.capture() as graph:
        ops.softmax(ops.linear(x, w), out=out)
    graph.launch(stream)
    stream.synchronize()
    close(out, np.full((4, 8), 1 / 8), 1e-6)


# ---- Reductions ----
@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("shape", [(1,), (7,), (5000,), (1, 1), (3, 17), (130, 70), (2, 9001), (2, 3, 40)])
def test_reductions_agree_with_numpy(name, shape):
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    a = jal.array(x)
    for axis in {None, -1, len(shape) - 1} | ({0} if len(shape) <= 2 else set()):
        for keepdims in (False, True):
            got = getattr(jal.ops, name)(a, axis=axis, keepdims=keepdims)
            want = getattr(np, name)(x.astype(np.float64), axis=axis, keepdims=keepdims)
            assert got.shape == want.shape
            np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5 * np.sqrt(x.size))


def test_reductions_of_views_types_and_nothing():
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    a = jal.array(x)
    assert np.array_equal(jal.ops.sum(a[1:, ::2], axis=1).numpy(), x[1:, ::2].sum(1))
    assert np.array_equal(jal.ops.max(a.T, axis=1).numpy(), x.T.max(1))
    assert jal.ops.sum(jal.array(x, jal.bfloat16)).item() == x.sum()
    assert jal.ops.sum(jal.zeros((3, 0)), axis=1).tolist() == [0, 0, 0]
    out = jal.empty(4, np.int32)
    assert jal.ops.sum(a, axis=1, out=out) is out and np.array_equal(out.numpy(), x.sum(1))
    with pytest.raises(ValueError, match=r"max: shape \(3, 0\) has nothing along the axis"):
        jal.ops.max(jal.zeros((3, 0)), axis=1)
    with pytest.raises(ValueError, match=r"mean: shape \(0,\) has nothing along the axis"):
        jal.ops.mean(jal.zeros(0))
    with pytest.raises(ValueError, match=r"sum: axis 2 of shape \(4, 6\)"):
        jal.ops.sum(a, axis=2)
    with pytest.raises(ValueError, match=r"sum: axis 0 of shape \(2, 2, 2\), expected the last axis, None, or either of a matrix"):
        jal.ops.sum(jal.zeros((2, 2, 2)), axis=0)


def test_softmax_of_wide_and_narrow_rows():
    for shape in ((3, 1), (70, 33), (2, 8192), (2, 8193), (2, 3, 5)):
        x = np.random.default_rng(4).standard_normal(shape).astype(np.float32) * 5
        e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
        np.testing.assert_allclose(jal.ops.softmax(jal.array(x)).numpy(), e / e.sum(-1, keepdims=True), atol=2e-6)


# ---- Positions on the device, as a graph that decodes needs them ----
def test_position_as_an_array_can_be_captured_and_changed():
    rng = np.random.default_rng(5)
    q = jal.array(rng.standard_normal((4, 1, 32)).astype(np.float32))
    k, v = (jal.array(rng.standard_normal((20, 64)).astype(np.float32)) for _ in range(2))
    position, out, stream = jal.array([3], np.int32), jal.empty(q.shape), jal.Stream(q.device)
    jal.ops.attention(q, k, v, position=position, out=out)  # builds the kernel
    with stream, stream.capture() as graph:
        jal.ops.attention(q, k, v, position=position, out=out)
    for at in (3, 11, 19):
        with stream:
            position.copy_from([at])
            graph.launch()
            got = out.numpy()
        assert np.array_equal(got, jal.ops.attention(q, k, v, position=at).numpy())
    x, cosine, sine = jal.ones((1, 32)), jal.ones((20, 16)), jal.zeros((20, 16))
    assert np.array_equal(jal.ops.rope(x, cosine, sine, position, head=32).numpy(), x.numpy())
    for wrong in (jal.array([1, 2], np.int32), jal.array([1.0])):
        with pytest.raises(TypeError, match="expected an int or one int32 on the same device"):
            jal.ops.rope(x, cosine, sine, wrong, head=32)


@pytest.mark.parametrize("dtype", [jal.float8_e4m3, jal.float8_e5m2])
def test_linear_with_eight_bit_float_weights(dtype):
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((5, 64)).astype(np.float32), jal.array(rng.standard_normal((33, 64)).astype(np.float32), dtype)
    got, want = jal.ops.linear(jal.array(x), w).numpy(), x.astype(np.float64) @ w.numpy().T.astype(np.float64)
    np.testing.assert_allclose(got, want, atol=6 * 2**-9 * np.abs(x).max() * np.linalg.norm(w.numpy(), axis=1).max())

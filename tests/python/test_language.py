"""The tile language against NumPy in double precision, on an emulated chip that checks every access, and its error messages."""
import gc
import inspect
import math
import os
import re

os.environ.setdefault("JALAPENO_CACHE_DIR", "")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, given, settings, strategies as st  # noqa: E402

import jalapeno as jal  # noqa: E402
from jalapeno import language as tl  # noqa: E402

DTYPES = [jal.float32, jal.bfloat16, jal.float16, jal.int8, jal.int32]
F, I = jal.float32, jal.int32


@pytest.fixture(scope="module")
def chip():
    """Finds races between engines, reads of what nothing wrote and boxes outside their arrays in every test here."""
    with jal.Device("emu:?hbm=256M&check=races,uninit,oob") as device:
        yield device


@pytest.fixture(scope="module")
def plain():
    with jal.Device("emu:?hbm=256M") as device:
        yield device


@pytest.fixture
def run(chip):
    def run(kernel, *args, out=None, grid=1, dtype=jal.float32, **constants):
        """Launches with NumPy arguments and an output of shape `out` in the end; the output."""
        moved = [jal.array(a, device=chip) if isinstance(a, np.ndarray) else a for a in args]
        y = jal.full(out, -7, dtype, chip)
        jal.kernel(kernel)[grid](*moved, y, **constants)
        chip.synchronize()
        return y.numpy()
    return run


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def close(got, want, rtol=2e-6, atol=1e-6):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=rtol, atol=atol)


# ---- Elementwise ----
def _erf_free_gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY = {
    "exp": (np.exp, -5, 5), "log": (np.log, 0.1, 9), "sqrt": (np.sqrt, 0, 9), "rsqrt": (lambda x: 1 / np.sqrt(x), 0.1, 9),
    "reciprocal": (lambda x: 1 / x, 0.1, 9), "tanh": (np.tanh, -4, 4), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -9, 9),
    "silu": (lambda x: x / (1 + np.exp(-x)), -9, 9), "gelu": (_erf_free_gelu, -4, 4), "relu": (lambda x: np.maximum(x, 0), -4, 4),
    "sin": (np.sin, -7, 7), "cos": (np.cos, -7, 7), "floor": (np.floor, -9, 9), "abs": (np.abs, -9, 9),
}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("shape", [(1, 1), (3, 37), (8, 64)])
def test_unary(run, name, shape):
    reference, low, high = UNARY[name]
    x = np.random.default_rng(1).uniform(low, high, shape).astype(np.float32)

    def k(x, y, *, FUNCTION, SHAPE):
        tl.store(y, (0, 0), FUNCTION(tl.load(x, (0, 0), SHAPE)))

    close(run(k, x, out=shape, FUNCTION=getattr(tl, name), SHAPE=shape), reference(x.astype(np.float64)), rtol=4e-6, atol=2e-6)


BINARY = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b,
          "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
          "eq": lambda a, b: a == b, "ne": lambda a, b: a != b}


@pytest.mark.parametrize("name", BINARY)
def test_binary_broadcasts_both_ways(run, name):
    f = BINARY[name]
    whole, row, column = np.round(normal(5, 9, scale=3)) + 0.5, np.round(normal(1, 9, seed=1, scale=3)) + 0.5, np.round(normal(5, 1, seed=2)) + 0.5

    def k(a, b, c, n, s, y, *, F):
        a, b, c = tl.load(a, (0, 0), (5, 9)), tl.load(b, (0, 0), (1, 9)), tl.load(c, (0, 0), (5, 1))
        one = c[2:3]
        for place, t in enumerate((F(a, a), F(a, b), F(b, a), F(a, c), F(c, a), F(b, c), F(c, b), F(a, 1.5), F(2, a), F(a, n), F(n, a),
                                   F(a, s), F(s, a), F(a, one), F(one, a), F(a, np.float32(0.5)), F(np.float32(0.5), a),
                                   F(np.int64(3), a))):
            tl.store(y, (5 * place, 0), t)

    got = run(k, whole, row, column, 3, 0.5, out=(90, 9), F=f)
    a, b, c = (x.astype(np.float64) for x in (whole, row, column))
    one = c[2, 0]
    want = [f(a, a), f(a, b), f(b, a), f(a, c), f(c, a), f(b, c), f(c, b), f(a, 1.5), f(2, a), f(a, 3), f(3, a), f(a, 0.5), f(0.5, a),
            f(a, one), f(one, a), f(a, 0.5), f(0.5, a), f(3, a)]
    close(got, np.concatenate([np.asarray(w, np.float64) for w in want]))


def test_extremes_select_and_fma(run):
    a, b, c = normal(4, 8), normal(1, 8, seed=1), normal(4, 1, seed=2)

    def k(a, b, c, s, y):
        a, b, c = tl.load(a, (0, 0), (4, 8)), tl.load(b, (0, 0), (1, 8)), tl.load(c, (0, 0), (4, 1))
        parts = (tl.maximum(a, b), tl.minimum(c, a), tl.maximum(a, 0.25), tl.minimum(s, a), tl.where(a < b, a, b), tl.where(b > 0, c, 2),
                 tl.where(c > 0, s, a), tl.fma(a, b, c), -a, +a, abs(a), tl.abs(a), tl.where(a < 0, 0.0, math.inf),
                 tl.full((4, 8), s) + b, tl.full((4, 8), 3), tl.zeros((4, 8)))
        for n, part in enumerate(parts):
            tl.store(y, (4 * n, 0), part)

    a_, b_, c_ = (x.astype(np.float64) for x in (a, b, c))
    one = np.ones_like(a_)
    want = [np.maximum(a_, b_), np.minimum(a_, c_), np.maximum(a_, 0.25), np.minimum(a_, 0.125), np.where(a_ < b_, a_, b_ * one),
            np.where(b_ > 0, c_, 2), np.where(c_ > 0, 0.125, a_), a_ * b_ + c_, -a_, a_, abs(a_), abs(a_), np.where(a_ < 0, 0.0, np.inf),
            0.125 + b_ * one, 3 * one, 0 * one]
    close(run(k, a, b, c, 0.125, out=(64, 8)), np.concatenate(want))


def test_broadcasting_keeps_negative_zero(run):
    def k(x, y):
        column = tl.load(x, (0, 0), (2, 1))
        tl.store(y, (0, 0), tl.where(tl.zeros((2, 3)), 1.0, column))
        tl.store(y, (2, 0), tl.full((2, 3), tl.scalar(-0.0)))

    assert np.signbit(run(k, np.array([[-0.0], [0.0]], np.float32), out=(4, 3)))[:, 0].tolist() == [True, False, True, True]


@pytest.mark.parametrize("source", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("target", DTYPES, ids=lambda d: d.name)
def test_conversions(chip, source, target):
    values = np.array([[0, 1, -1, 2.5, 3.5, -2.5, 100.4, -100.6, 127, -128, 300, -300, 0.1, 5e4]], np.float64)
    held = source.decode(source.encode(np.clip(np.rint(values), -128, 127) if source is jal.int8 else np.rint(values) if source is I
                                       else values)).astype(np.float64)
    if target is jal.int8:
        want = np.clip(np.rint(held), -128, 127)
    elif target is I:
        want = np.rint(held)
    else:
        want = target.decode(target.encode(held.astype(np.float32)))

    @jal.kernel
    def k(x, y, z, w, *, TO):
        t = tl.load(x, (0, 0), (1, 14)).to(TO)
        assert t.dtype is tl._as_dtype(TO) and t.shape == (1, 14)
        tl.store(y, (0, 0), t)
        tl.store(z, (0, 0), tl.load(x, (0, 0), (1, 14), dtype=TO))
        tl.store(w, (0, 0), tl.load(x, (0, 0), (1, 14)))

    x = jal.array(source.encode(held).view(source.numpy), device=chip)
    y, z, w = (jal.empty((1, 14), target, chip) for _ in range(3))
    k[1](x, y, z, w, TO=target)
    for result in (y, z, w):  # by the vector engine, by the load, by the store
        assert np.array_equal(result.numpy(), want), (result.numpy(), want)


# ---- Loading, storing, slices ----
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
def test_ragged_loads_are_filled_and_stores_clipped(chip, dtype):
    x = np.arange(7 * 11).reshape(7, 11) % 100

    @jal.kernel
    def k(x, y, *, B=4):
        i, j = tl.program_id(0) * B, tl.program_id(1) * B
        t = tl.load(x, (i, j), (B, B), fill=-3)
        tl.store(y, (i, j), t)
        tl.store(y, (i + 8, j), tl.load(x, (i - 1, j - 1), (B, B), 5))

    y = jal.zeros((16, 11), dtype, chip)
    k[2, 3](jal.array(dtype.encode(x.astype(np.float32)).view(dtype.numpy), device=chip), y)
    padded = np.full((9, 13), 5)
    padded[1:8, 1:12] = x
    got = y.numpy()
    assert np.array_equal(got[:7], x) and np.all(got[7, :11] == -3)
    assert np.array_equal(got[8:16], padded[:8, :11])


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_ranks_and_extents(chip, rank):
    shape = (2, 3, 5, 6)[4 - rank:]
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    @jal.kernel
    def k(x, y):
        ones = (tl.program_id(0) * 0,) * (x.ndim - 1)
        tl.store(y, 0, tl.load(x, ones + (1,), 3))
        total = tl.scalar(1)
        for n in x.shape:
            total = total * n
        assert len(x.shape) == x.ndim and x.dtype is F
        tl.store(y, 4, tl.full(1, total * 10 + x.shape[-1]))

    y = jal.zeros(5, device=chip)
    k[1](jal.array(x, device=chip), y)
    assert y.tolist() == [*x.reshape(-1, shape[-1])[0][1:4].tolist(), 0.0, x.size * 10 + shape[-1]]


def test_strided_arrays_and_adding_stores(chip):
    x = jal.array(np.arange(24, dtype=np.float32).reshape(4, 6), device=chip)
    y = jal.full((4, 6), 100, F, chip)

    @jal.kernel
    def add(x, y):
        tl.store(y, (0, 0), tl.load(x, (0, 0), (4, 8)), add=True)

    add[1](x[::2, 1:4], y[1::2, 2:5])
    want = np.full((4, 6), 100.0)
    want[1::2, 2:5] += np.arange(24).reshape(4, 6)[::2, 1:4]
    assert np.array_equal(y.numpy(), want)


def test_slices_share_memory(run):
    def k(x, n, y):
        t = tl.load(x, (0, 0), (6, 8))
        row, part = t[-1], t[1:3, 2:]
        assert row.shape == (1, 8) and part.shape == (2, 6) and t[2, 3].shape == (1, 1)
        part *= 10
        t[0:1] += row
        t -= t[0:1]
        tl.store(y, (0, 0), t)
        tl.store(y, (6, 0), tl.slice_tile(t, n, n + 1, (2, 3)))
        line = tl.load(x, (5, 0), 8)
        assert line[2:5].shape == (3,)
        tl.store(y, (8, 0), line[2:5])

    x = normal(6, 8)
    t = x.astype(np.float64)
    t[1:3, 2:] *= 10
    t[0] += t[5]
    t -= t[0].copy()
    want = np.full((9, 8), -7.0)
    want[:6], want[6:8, :3], want[8, :3] = t, t[3:5, 4:7], x[5, 2:5]
    close(run(k, x, 3, out=(9, 8)), want, atol=1e-5)


def test_in_place_and_views_as_in_numpy(run):
    def k(x, y):
        t = tl.load(x, (0, 0), (4, 4))
        other, flipped = t, t.T
        tl.store(y, (0, 0), flipped)
        other += 1
        tl.store(y, (4, 0), flipped)
        tl.store(y, (8, 0), t)
        t = t + 1
        tl.store(y, (12, 0), other)
        tl.store(y, (16, 0), tl.copy(t) - t)
        h = t.to(tl.bfloat16)
        h += 0.001
        tl.store(y, (20, 0), h)

    x = np.arange(16, dtype=np.float32).reshape(4, 4)
    want = np.concatenate([x.T, x.T + 1, x + 1, x + 1, 0 * x, jal.bfloat16.decode(jal.bfloat16.encode(x + 2.001))])
    assert np.array_equal(run(k, x, out=(24, 4)), want)


def test_item_and_device_scalars(run):
    def k(x, ints, n, s, y):
        t, i = tl.load(x, (0, 0), (2, 4)), tl.load(ints, 0, 4)
        a, b = tl.item(t, 1, n), tl.item(i, 0, 1)
        small = tl.item(i.to(tl.int8), 0, 2)
        most = [a + 1, b + 1, small, a * b, n - 7, -n, n // 2, 7 % n, n << 3, 1 << n, 40 >> n, n & 1, 6 & n, n | 4, 4 | n, n ^ 1, 1 ^ n]
        for k, v in enumerate(most):
            tl.store(y, k, tl.full(1, v))
        del most, v
        rest = [tl.cdiv(n, 2), tl.minimum(n, 2), tl.maximum(n, 5), s / 2, 1 / s, 2 - s, s * n, tl.to_int(s * 10), tl.to_float(n) + 0.5,
                tl.num_programs(0), tl.cdiv(7, 2), tl.maximum(3, 4.5), +n, tl.item(t.to(tl.float16), 0, 1), tl.copy(n), tl.scalar(n)]
        for k, v in enumerate(rest):
            tl.store(y, 17 + k, tl.full(1, v))

    x = np.arange(8, dtype=np.float32).reshape(2, 4) + 0.5
    got = run(k, x, np.array([5, -6, -7, 300], np.int32), 3, 0.25, out=33)
    want = [8.5, -5, -7, -45, -4, -3, 1, 1, 24, 8, 5, 1, 2, 7, 7, 2, 2, 2, 2, 5, 0.125, 4, 1.75, 0.75, 2, 3.5, 1, 4, 4.5, 3, 1.5, 3, 3]
    assert got.tolist() == want


# ---- Reductions and the rest of the functions ----
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (5, 1), (6, 33)])
def test_reductions(run, shape):
    x = normal(*shape)

    def k(x, y, *, SHAPE):
        t = tl.load(x, (0, 0), SHAPE)
        row, column = tl.zeros((1, 40)), tl.zeros((8, 1))
        del row, column
        for n, f in enumerate((tl.sum, tl.max, tl.min)):
            assert f(t, axis=0).shape == (1, SHAPE[1]) and f(t, 1).shape == (SHAPE[0], 1) and f(t).shape == (1, 1)
            tl.store(y, (n, 0), f(t, axis=0))
            tl.store(y, (3 + n, 0), f(t, axis=-1).T)
            tl.store(y, (6 + n, 0), f(t))
        tl.store(y, (9, 0), tl.sum_squares(t).T)
        tl.store(y, (10, 0), tl.argmax(t).T)
        tl.store(y, (11, 0), tl.cumsum(t)[SHAPE[0] - 1])
        tl.store(y, (12, 0), t.sum(0) + t.max(0) + t.min(0))

    r, c = shape
    got, d = run(k, x, out=(13, 40), SHAPE=shape), x.astype(np.float64)
    want = np.full((13, 40), -7.0)
    for n, f in enumerate((np.sum, np.max, np.min)):
        want[n, :c], want[3 + n, :r], want[6 + n, 0] = f(d, 0), f(d, 1), f(d)
    want[9, :r], want[10, :r], want[11, :c], want[12, :c] = (d**2).sum(1), d.argmax(1), np.cumsum(d, 1)[-1], d.sum(0) + d.max(0) + d.min(0)
    close(got, want, atol=2e-5)


def test_one_dimensional_tiles(run):
    def k(x, y):
        t = tl.load(x, 0, 13)
        assert t.shape == (13,) and tl.sum(t).shape == (1,) and (t * 2).shape == (13,) and t[3:5].shape == (2,)
        tl.store(y, 0, tl.softmax(t))
        tl.store(y, 13, tl.sum(t, axis=0))
        tl.store(y, 14, tl.argmax(t))

    x = normal(13)
    e = np.exp(x.astype(np.float64) - x.max())
    close(run(k, x, out=15), [*(e / e.sum()), x.astype(np.float64).sum(), x.argmax()])


def test_top_k(chip):
    x = np.round(normal(4, 37), 1)

    @jal.kernel
    def k(x, v, i, *, K):
        values, indices = tl.top_k(tl.load(x, (0, 0), (4, 37)), K, base=100)
        tl.store(v, (0, 0), values)
        tl.store(i, (0, 0), indices)

    for n in (1, 5, 40):
        v, i = jal.zeros((4, n), device=chip), jal.zeros((4, n), jal.int32, chip)
        k[1](jal.array(x, device=chip), v, i, K=n)
        order = np.argsort(-x, axis=1, kind="stable")[:, :n]
        m = min(n, 37)
        assert np.array_equal(v.numpy()[:, :m], np.take_along_axis(x, order, 1)) and np.array_equal(i.numpy()[:, :m], order + 100)
        assert np.all(v.numpy()[:, m:] == -np.inf) and np.all(i.numpy()[:, m:] == -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("unit", [1, 2])
def test_gather_and_scatter(plain, dtype, unit):
    x = np.arange(12 * 6).reshape(12, 6) % 100
    index = np.array([3, 0, -1, 5, 99, 1], np.int32)  # the checked chip reports 99

    @jal.kernel
    def k(x, index, y, z, *, UNIT):
        i = tl.load(index, 0, 6)
        rows = tl.gather(x, i, 4, column=1, unit=UNIT)
        tl.store(y, (0, 0), rows)
        tl.scatter(z, i, rows, column=2, unit=UNIT)

    y, z = jal.zeros((6 * unit, 4), dtype, plain), jal.zeros((12, 6), dtype, plain)
    k[1](jal.array(dtype.encode(x.astype(np.float32)).view(dtype.numpy), device=plain), jal.array(index, device=plain), y, z, UNIT=unit)
    rows, scattered = np.zeros((6, unit, 4)), np.zeros((12, 6))
    for n, r in enumerate(index):
        if 0 <= r < 12 // unit:
            rows[n] = x[r * unit:(r + 1) * unit, 1:5]
            scattered[r * unit:(r + 1) * unit, 2:6] = rows[n]
    assert np.array_equal(y.numpy(), rows.reshape(-1, 4)) and np.array_equal(z.numpy(), scattered)


def test_iota_arange_mask(run):
    def k(x, n, y):
        tl.store(y, (0, 0), tl.iota((3, 8), n, 100, -2))
        tl.store(y, (3, 0), tl.arange(8, n))
        tl.store(y, (4, 0), tl.arange(8).to(tl.float32) * 0.5)
        tl.store(y, (5, 0), tl.mask(tl.load(x, (0, 0), (3, 8)), n, 7, row_step=2, fill=9))

    x = normal(3, 8)
    rows, columns = np.mgrid[:3, :8]
    got = run(k, x, 5, out=(8, 8))
    close(got, np.concatenate([5 + 100 * rows - 2 * columns, [np.arange(8) + 5], [np.arange(8) / 2],
                               np.where(columns + 5 < 7 + 2 * rows, x, 9)]))


def test_uniform_is_philox_and_repeats(run):
    def k(y):
        tl.store(y, (0, 0), tl.uniform((64, 64), 7))
        tl.store(y, (64, 0), tl.uniform((64, 64), 7))
        tl.store(y, (128, 0), tl.uniform((64, 64), 7, counter=1))

    a, b, c = np.split(run(k, out=(192, 64)), 3)
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    for u in (a, c):
        assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 4 / math.sqrt(12 * u.size) and abs(u.var() - 1 / 12) < 0.005
    # The first block of Philox4x32-10 with key (7, 0) and a counter of 0.
    counter, key = [0, 0, 0, 0], [7, 0]
    for _ in range(10):
        p, q = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(q >> 32) ^ counter[1] ^ key[0], q & 0xFFFFFFFF, (p >> 32) ^ counter[3] ^ key[1], p & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    assert a[0, :4].tolist() == [(n >> 8) / 2**24 for n in counter]


def test_steps_of_language_models(run):
    x, w = normal(6, 16), normal(1, 16, seed=1)
    angle = np.random.default_rng(2).uniform(-3, 3, (6, 4)).astype(np.float32)

    def k(x, w, c, s, eps, y):
        t, weight = tl.load(x, (0, 0), (6, 16)), tl.load(w, (0, 0), (1, 16))
        cosine, sine = tl.load(c, (0, 0), (6, 4)), tl.load(s, (0, 0), (6, 4))
        parts = (tl.rmsnorm(t, weight, eps), tl.rmsnorm(t, weight), tl.rope(t, cosine, sine, 8), tl.rope(t, cosine, sine, 16, 8),
                 tl.rope(t, cosine[:1], sine[:1], 8, interleaved=True), tl.glu(t, t * 2), tl.glu(t, t, "none"), tl.glu(t, t, "gelu"),
                 tl.glu(t, t, "relu"), tl.softmax(t))
        for n, part in enumerate(parts):
            tl.store(y, (6 * n, 0), part)

    got = run(k, x, w, np.cos(angle), np.sin(angle), 0.5, out=(60, 16))
    d, wd, a = x.astype(np.float64), w.astype(np.float64), angle.astype(np.float64)
    norm = lambda eps: d / np.sqrt((d**2).mean(1, keepdims=True) + eps) * wd  # noqa: E731

    def rotate(x, heads, angles):
        out = x.copy()
        for h in heads:
            for n, (p, q) in enumerate(h):
                out[:, p] = x[:, p] * np.cos(angles[:, n]) - x[:, q] * np.sin(angles[:, n])
                out[:, q] = x[:, p] * np.sin(angles[:, n]) + x[:, q] * np.cos(angles[:, n])
        return out

    halves = [[(h + n, h + n + 4) for n in range(4)] for h in (0, 8)]
    pairs = [[(h + 2 * n, h + 2 * n + 1) for n in range(4)] for h in (0, 8)]
    e = np.exp(d - d.max(1, keepdims=True))
    want = [norm(0.5), norm(1e-5), rotate(d, halves, a), rotate(d, halves[:1], a), rotate(d, pairs, a[:1].repeat(6, 0)),
            d / (1 + np.exp(-d)) * d * 2, d * d, _erf_free_gelu(d) * d, np.maximum(d, 0) * d, e / e.sum(1, keepdims=True)]
    close(got, np.concatenate(want), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_flash_attention(run, stages):
    """Online softmax over blocks of keys, causal, with an accumulator that products and vector operations share."""
    rows, keys, d, block = 20, 50, 16, 16
    q, kk, v = normal(rows, d), normal(keys, d, seed=1), normal(keys, d, seed=2)

    def k(q, k, v, y, *, STAGES):
        query = tl.load(q, (0, 0), (20, 16))
        state, out = tl.SoftmaxState(20), tl.zeros((20, 16))
        for i in tl.range(0, k.shape[0], 16, stages=STAGES):
            scores = tl.dot(query, tl.load(k, (i, 0), (16, 16)).T)
            scores = tl.mask(scores, i, 31, row_step=1)
            scores = tl.mask(scores, i, k.shape[0])
            p = tl.softmax_step(scores, state, scale=0.25)
            out = out * state.correction
            out = out + tl.dot(p, tl.load(v, (i, 0), (16, 16)))
        tl.store(y, (0, 0), out / state.sum)

    s = q.astype(np.float64) @ kk.T.astype(np.float64) / 4
    s = np.where(np.arange(keys) < 31 + np.arange(rows)[:, None], s, -np.inf)
    p = np.exp(s - s.max(1, keepdims=True))
    close(run(k, q, kk, v, out=(rows, d), STAGES=stages), p @ v / p.sum(1, keepdims=True), rtol=1e-4, atol=1e-5)


# ---- Products ----
@pytest.mark.parametrize("dtype", [jal.float32, jal.bfloat16, jal.float16, jal.int8], ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 33, 7), (16, 64, 48)])
def test_dot_of_all_types_and_layouts(chip, dtype, shape):
    m, kk, n = shape
    a, b = (np.rint(normal(*s, seed=i, scale=3)) for i, s in enumerate(((m, kk), (kk, n))))
    a, b = (dtype.decode(dtype.encode(x.astype(np.float32))).astype(np.float32) for x in (a, b))

    @jal.kernel
    def k(a, b, bt, y, *, S):
        m, kk, n = S
        a, b, bt = tl.load(a, (0, 0), (m, kk)), tl.load(b, (0, 0), (kk, n)), tl.load(bt, (0, 0), (n, kk))
        at = tl.copy(a.T)
        sums = (tl.dot(a, b), a @ bt.T, tl.dot(at.T, b), tl.dot(bt, a.T).T, tl.dot(b.T, at).T)
        for i, t in enumerate(sums):
            assert t.shape == (m, n) and t.dtype is (tl.int32 if a.dtype is tl.int8 else tl.float32)
            tl.store(y, (i * m, 0), t)

    y = jal.zeros((5 * m, n), I if dtype is jal.int8 else F, chip)
    k[1](*(jal.array(dtype.encode(x).view(dtype.numpy), device=chip) for x in (a, b, np.ascontiguousarray(b.T))), y, S=shape)
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.array_equal(y.numpy(), np.concatenate([want] * 5))


@pytest.mark.parametrize("form", ["acc += dot", "acc = acc + dot", "acc = dot + acc", "dot(acc=)", "spm", "explicit"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_accumulators(run, form, stages):
    a, b = normal(10, 100), normal(100, 12, seed=1)

    def k(a, b, y, *, FORM, STAGES):
        acc = tl.zeros((16, 16), space={"spm": "spm", "explicit": "acc"}.get(FORM, "auto"))
        for i in tl.range(0, 100, 32, stages=STAGES):
            x, w = tl.load(a, (0, i), (16, 32)), tl.load(b, (i, 0), (32, 16))
            if FORM == "acc = acc + dot":
                acc = acc + tl.dot(x, w)
            elif FORM == "acc = dot + acc":
                acc = tl.dot(x, w) + acc
            elif FORM == "dot(acc=)":
                acc = tl.dot(x, w, acc=acc)
            else:
                acc += tl.dot(x, w)
        assert acc.space == ("spm" if FORM == "spm" else "acc")
        tl.store(y, (0, 0), acc)

    got = run(k, a, b, out=(10, 12), FORM=form, STAGES=stages)
    close(got, a.astype(np.float64) @ b.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_epilogues_and_accumulators_in_vector_operations(run):
    a, b, row, column = normal(8, 16), normal(16, 8, seed=1), normal(1, 8, seed=2), normal(8, 1, seed=3)

    def k(a, b, r, c, y):
        a, b, r, c = (tl.load(x, (0, 0), s) for x, s in ((a, (8, 16)), (b, (16, 8)), (r, (1, 8)), (c, (8, 1))))
        acc = tl.zeros((8, 8), space="acc")
        acc += tl.dot(a, b)
        product = tl.dot(a, b)
        product += 1
        parts = (tl.drain(acc, row_scale=r, column_scale=c), tl.drain(acc, act="silu"), tl.relu(acc), tl.silu(tl.dot(a, b)), tl.gelu(acc),
                 acc * 2 + r, tl.exp(acc * 0.1), acc[2:4] + r, tl.dot(a, b).to(tl.bfloat16), acc.T, product, tl.dot(a, b) + tl.dot(a, b),
                 tl.copy(acc), tl.where(acc > 0, acc, r), acc.sum(0))
        for n, part in enumerate(parts):
            tl.store(y, (8 * n, 0), part)

    p = a.astype(np.float64) @ b.astype(np.float64)
    r, c = row.astype(np.float64), column.astype(np.float64)
    silu = p / (1 + np.exp(-p))
    blank = np.full((6, 8), -7.0)
    want = [p * r * c, silu, np.maximum(p, 0), silu, _erf_free_gelu(p), p * 2 + r, np.exp(p * 0.1), np.vstack([p[2:4] + r, blank]),
            p, p.T, p + 1, 2 * p, p, np.where(p > 0, p, r), np.vstack([p.sum(0)[None], blank, blank[:1]])]
    got = run(k, a, b, row, column, out=(120, 8))
    for n, w in enumerate(want):
        close(got[8 * n:8 * n + 8], w, rtol=5e-3 if n == 8 else 2e-5, atol=2e-5)


# ---- Loops and conditions ----
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("trips", [0, 1, 5])
def test_loops_carry_what_is_rebound(run, stages, trips):
    def k(x, n, y, *, STAGES):
        acc, inplace, count, a, b, last = tl.zeros((1, 8)), tl.zeros((1, 8)), tl.scalar(0), tl.scalar(0), tl.scalar(1), tl.scalar(-1)
        total, previous = tl.scalar(0.5), tl.zeros((1, 8))
        held, pair, named = [tl.zeros((1, 8)), 7], (tl.scalar(0), tl.zeros((1, 8))), {"most": tl.full((1, 8), -9)}
        for i in tl.range(n, stages=STAGES):
            t = tl.load(x, (i, 0), (1, 8))
            previous = acc
            acc = acc + t
            inplace += t
            count = count + i
            a, b = b, a + b
            last = i
            total = total * 2
            held[0] = held[0] + previous
            pair = (pair[0] + 2, pair[1] - t)
            named["most"] = tl.maximum(named["most"], t)
        for row, v in enumerate((acc, inplace, previous, held[0], pair[1], named["most"])):
            tl.store(y, (row, 0), v)
        for column, v in enumerate((count, a, b, last, total, pair[0])):
            tl.store(y, (6, column), tl.full((1, 1), v))

    x = normal(5, 8)
    d = x.astype(np.float64)
    acc, previous, held, most = np.zeros(8), np.zeros(8), np.zeros(8), np.full(8, -9.0)
    count, a, b, last, total, pair = 0, 0, 1, -1, 0.5, 0
    for i in range(trips):
        previous = acc
        acc = acc + d[i]
        held = held + previous
        most = np.maximum(most, d[i])
        count, a, b, last, total, pair = count + i, b, a + b, i, total * 2, pair + 2
    want = np.vstack([acc, acc, previous, held, -acc, most, [count, a, b, last, total, pair, -7, -7]])
    close(run(k, x, trips, out=(7, 8), STAGES=stages), want, atol=1e-5)


@pytest.mark.parametrize("bounds", [(0, 7, 1), (2, 9, 3), (5, 5, 1), (7, 2, 2), (-4, 3, 2)])
@pytest.mark.parametrize("constant", [True, False])
def test_bounds_and_what_the_counter_holds_afterwards(run, bounds, constant):
    def k(b, e, s, y, *, CONSTANT):
        begin, end, step = CONSTANT or (b, e, s)
        seen, i = tl.scalar(0), tl.scalar(-100)
        for i in tl.range(begin, end, step, stages=2):
            seen = seen * 10 + i
        tl.store(y, 0, tl.full(1, seen))
        tl.store(y, 1, tl.full(1, i))

    seen, i = 0, -100
    for i in range(*bounds):
        seen = seen * 10 + i
    assert run(k, *bounds, out=2, CONSTANT=bounds if constant else None).tolist() == [seen, i]


def test_counter_of_a_simple_loop_after_it(run):
    def k(n, y):
        for i in tl.range(n):
            tl.store(y, i, tl.full(1, i * i))
        tl.store(y, 9, tl.full(1, i))

    assert run(k, 6, out=10).tolist() == [0, 1, 4, 9, 16, 25, -7, -7, -7, 5]


def test_nested_loops_conditions_and_reused_names(run):
    def k(x, n, y):
        total = tl.zeros((1, 8))
        for i in tl.range(n):
            inner = tl.zeros((1, 8))
            for j in tl.range(i):
                t = tl.load(x, (j, 0), (1, 8))
                with tl.when(j != 1):
                    with tl.when(j < 3):
                        inner = inner + t
                    inner = inner * 2
            total = total + inner
            t = inner * 0
        for i in tl.range(2):
            total = total + 1
        with tl.when(n > 100):
            total = total * 0
            for i in tl.range(3):
                total = total + 5
        with tl.when(n < 100):
            for i in tl.range(3):
                total = total + 0.5
        tl.store(y, (0, 0), total)

    x = normal(6, 8)
    total = np.zeros(8)
    for i in range(6):
        inner = np.zeros(8)
        for j in range(i):
            if j != 1:
                if j < 3:
                    inner = inner + x[j]
                inner = inner * 2
        total = total + inner
    close(run(k, x, 6, out=(1, 8)), [total + 2 + 1.5], rtol=1e-5)


def test_a_condition_keeps_what_it_does_not_change(run):
    def k(n, y):
        best, at, other = tl.scalar(-1), tl.zeros(4), tl.full(4, 5)
        for i in tl.range(n):
            with tl.when(i == 2):
                best = i
                at = other
            with tl.when(i == 77):
                best = i + 1
                at = at * 0
            tl.store(y, i, tl.full(1, i))
        tl.store(y, 4, tl.full(1, best))
        tl.store(y, 5, at[0:1])
        with tl.when(~(n == 4)):
            other = other + 1
        tl.store(y, 6, other[0:1])

    assert run(k, 4, out=7).tolist() == [0, 1, 2, 3, 2, 5, 5]


def test_other_names_keep_their_values(run):
    """A loop changes names, never what another name or a caller holds."""
    def doubled(x, n):
        for _ in tl.range(n):
            x = x * 2
        return x

    class Box:
        def __init__(self, value):
            self.value = value

    def k(x, n, y):
        t = tl.load(x, 0, 4)
        alias, view, flipped, m, count = t, t[1:2], t.T, n, n
        box = Box(t)
        tl.store(y, 0, t + doubled(t, n))
        for i in tl.range(n):
            t = t + 1
            count = count + 1
            box.value = box.value - 1
            kept = t
            t = t + 1
        tl.store(y, 4, t)
        tl.store(y, 8, alias)
        tl.store(y, 12, view)
        tl.store(y, 13, tl.full(1, m))
        tl.store(y, 14, tl.full(1, count))
        tl.store(y, 15, tl.full(1, doubled(n, n) + n))
        tl.store(y, 16, flipped.T)
        tl.store(y, 20, box.value)
        tl.store(y, 24, kept)

    x = np.array([1, 2, 3, 4], np.float32)
    want = np.concatenate([x + 8 * x, x + 6, x, [2, 3, 6, 27], x, x - 3, x + 5])
    assert run(k, x, 3, out=28).tolist() == want.tolist()


def test_a_private_place_costs_nothing(chip):
    """The copy before a loop is made only for a value that somebody else holds."""
    def kernel(shared):
        def k(x, n, y, *, SHARED=shared):
            t = tl.load(x, 0, 64)
            other = t if SHARED else None
            for _ in tl.range(n):
                t = t + 1
            tl.store(y, 0, t)
            if SHARED:
                tl.store(y, 0, other, add=True)
        return jal.kernel(k)

    copies = [kernel(s).compile(F, int, F, device=chip).assembly.count("DCPY") for s in (False, True)]
    assert copies == [1, 2]


def test_products_and_transposed_tiles_across_blocks(run):
    def k(a, n, y):
        a = tl.load(a, (0, 0), (4, 4))
        flipped, product = a.T, tl.dot(a, a)
        with tl.when(n > 5):
            tl.store(y, (0, 0), flipped + product)
        tl.store(y, (4, 0), flipped)
        for i in tl.range(n):
            a = a + 1
            product = product + tl.dot(a, a)
        tl.store(y, (8, 0), flipped)
        tl.store(y, (12, 0), product)

    a = normal(4, 4)
    d = a.astype(np.float64)
    product = d @ d + sum((d + i) @ (d + i) for i in (1, 2, 3))
    close(run(k, a, 3, out=(16, 4)), np.vstack([np.full((4, 4), -7.0), d.T, d.T, product]), rtol=1e-5, atol=1e-5)


def test_names_written_first_may_change_their_kind(run):
    def k(n, y):
        t, parts = None, [1, 2, 3]
        for i in tl.range(n):
            t = tl.full(4, i)
            parts = [t, t * 2]
            for part in parts:
                tl.store(y, i * 4, part)
            text = "different"
            del text, t
        parts = 5
        for k in range(parts):
            tl.store(y, 12 + k, tl.full(1, k))

    assert run(k, 3, out=17).tolist() == [0] * 4 + [2] * 4 + [4] * 4 + [0, 1, 2, 3, 4]


def test_device_assert_names_the_line(chip):
    @jal.kernel
    def k(x, limit):
        n = tl.item(tl.load(x, 0, 4), 0, 1)
        tl.device_assert(n >= 0)
        tl.device_assert(n < limit, 42)  # this one

    good = jal.array(np.array([0, 3, 0, 0], np.int32), device=chip)
    k[1](good, 4)
    chip.synchronize()
    with jal.Device("emu:?hbm=64M") as own:
        k[1](jal.array(np.array([0, 4, 0, 0], np.int32), device=own), 4)
        with pytest.raises(jal.KernelError, match="TRAP|trap") as e:
            jal.current_stream(own).synchronize()
        assert "42" in str(e.value)
        assert e.value.record.kernel == "k" and e.value.record.source_line == line_of("this one")
        assert e.value.record.source_file == os.path.basename(__file__)


# ---- Limits ----
def test_hundreds_of_temporaries_fit(run):
    def k(x, y):
        t = tl.load(x, (0, 0), (64, 256))
        for n in range(400):
            t = t * 1.0 + (n % 3) * 0.125
            small = tl.sum(t, 1)
            t = t + (small - small)
        tl.store(y, (0, 0), t)

    close(run(k, normal(64, 256), out=(64, 256)), normal(64, 256).astype(np.float64) + sum(n % 3 for n in range(400)) * 0.125, atol=1e-4)


def test_unrolled_traffic_needs_no_more_semaphores_than_there_are(run):
    def k(x, y):
        for n in range(80):
            a = tl.load(x, (n, 0), (1, 16))
            tl.store(y, (n, 0), tl.dot(tl.exp(a).T, a)[0] + tl.load(x, (79 - n, 0), (1, 16)))

    x = normal(80, 16)
    d = x.astype(np.float64)
    close(run(k, x, out=(80, 16)), np.exp(d[:, :1]) * d + d[::-1], rtol=1e-5, atol=1e-5)


def test_many_live_scalars_and_deep_expressions(run):
    def k(n, y):
        values = [n + k for k in range(20)]
        total = tl.scalar(0)
        for v in values:
            total = total + v * 2 - 1
        tl.store(y, 0, tl.full(1, total))
        for _ in range(100):
            n = n * 3 % 1000 + tl.program_id(0)
        tl.store(y, 1, tl.full(1, n))

    n = 5
    for _ in range(100):
        n = n * 3 % 1000
    assert run(k, 5, out=2).tolist() == [2 * sum(range(5, 25)) - 20, n]


def test_nothing_waits_for_the_garbage_collector(chip):
    """Memory and registers come back with the last reference; a cycle of references would keep them."""
    def k(x, n, y):
        t = tl.load(x, (0, 0), (64, 256))
        for k in range(30):
            count = n + k
            for i in tl.range(count):
                part = t + i
                with tl.when(i > 3):
                    t = part * 2
            t = t + 1
        tl.store(y, (0, 0), t)

    gc.collect()
    gc.disable()
    try:
        compiled = jal.kernel(k).compile((F, 2), int, (F, 2), device=chip)
    finally:
        gc.enable()
    assert compiled.spm_bytes <= 5 * 64 * 256 * 4


def test_large_memory_serves_small_tiles_when_it_is_full(run):
    def k(x, y):
        big = tl.load(x, (0, 0), (1536, 512))  # 3 of the 4 MiB
        del big
        small = [tl.full((256, 512), n) for n in range(1, 4)]
        small[0] += small[1]
        small[0] += small[2]
        tl.store(y, (0, 0), small[0][:1])

    assert np.all(run(k, normal(512, 512), out=(1, 512)) == 6)


# ---- Random expressions ----
RANDOM_SHAPES = [(1, 1), (1, 8), (6, 1), (6, 8)]


OPERATIONS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "max": 2, "min": 2, "tanh": 1, "sigmoid": 1, "sin": 1, "cos": 1, "abs": 1, "neg": 1,
              "silu": 1, "exp": 1, "sum": 1, "rowmax": 1, "where": 3, "T": 1, "inplace": 2, "half": 1, "loop": 2, "fma": 3, "dot": 2}


def random_tree(rng, depth):
    """An expression as nested tuples. Everything stays within +-8, so that errors stay small."""
    if depth == 0 or rng.random() < 0.08:
        return [("tile", rng.integers(4)), ("tile", rng.integers(4)), ("number", rng.choice([-2, 0.5, 1, 3.25])),
                ("scalar", rng.integers(2))][rng.integers(4)]
    op = list(OPERATIONS)[rng.integers(len(OPERATIONS))]
    return (op, *(random_tree(rng, depth - 1) for _ in range(OPERATIONS[op])), int(rng.integers(3)))


class OfTiles:
    """Evaluates a tree with the tile language."""

    def __init__(self, tiles, scalars):
        self.tiles, self.scalars = tiles, scalars

    def squash(self, x):
        return tl.minimum(tl.maximum(x, -8.0), 8.0)

    def tile(self, x):
        return x if isinstance(x, tl.Tile) else self.tiles[3] * 0 + x

    def __call__(self, tree):
        op, *rest = tree
        if op == "tile":
            return self.tiles[rest[0]]
        if op == "number":
            return rest[0]
        if op == "scalar":
            return self.scalars[rest[0]]
        *rest, n = rest
        args = [self(r) for r in rest]
        first = self.tile(args[0])
        if op in ("add", "sub", "mul"):
            f = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}[op]
            return self.squash(f(args[0], self.tile(args[1])) if n else f(first, args[1]))
        if op == "div":
            return self.squash(args[0] / (abs(self.tile(args[1])) + 1.0))
        if op in ("max", "min"):
            return (tl.maximum if op == "max" else tl.minimum)(first, args[1])
        if op in ("tanh", "sigmoid", "sin", "cos", "abs", "silu"):
            return getattr(tl, op)(first)
        if op == "neg":
            return -first
        if op == "exp":
            return tl.exp(tl.minimum(first, 1.0))
        if op == "sum":
            return self.squash(tl.sum(first, axis=[None, 0, 1][n]) * 0.125)
        if op == "rowmax":
            return tl.max(first, axis=[None, 0, 1][n])
        if op == "where":
            return tl.where(tl.floor(self.tiles[n]) > 0, self.tile(args[1]), args[2])
        if op == "T":
            return self.squash(first.T.T + first.T.sum() * 0.015625)
        if op == "inplace":
            x = self.tile(args[0]) + self.tiles[3] * 0
            x *= 0.5
            x += args[1] if not isinstance(args[1], tl.Tile) else args[1] * 0.5
            return self.squash(x)
        if op == "half":
            return (first * 0).to(tl.bfloat16).to(tl.float32) + first
        if op == "fma":
            return self.squash(tl.fma(first, self.tile(args[1]), self.tile(args[2])))
        if op == "dot":
            a, b = self.tile(args[0]) + self.tiles[3] * 0, self.tile(args[1]) + self.tiles[3] * 0
            return self.squash(tl.dot(tl.dot(a, b.T) * 0.0078125, b) * 0.0078125)
        assert op == "loop"
        acc, other, scale = first + self.tiles[3] * 0, self.tile(args[1]), tl.scalar(0.5)
        for i in tl.range(n):
            acc = self.squash(acc * 0.5 + other * scale + i)
            scale = scale * 0.5
        return acc


class OfArrays(OfTiles):
    """The same with NumPy: (values, bound of the error)."""

    def squash(self, x):
        return np.clip(x[0], -8, 8), x[1]

    def tile(self, x):
        return x if isinstance(x[0], np.ndarray) else (np.zeros((6, 8)) + x[0], np.zeros((6, 8)) + x[1])

    @staticmethod
    def of(value, error):
        return value, error + np.abs(value) * 2.0**-22 + 2.0**-40

    def add(self, a, b): return self.of(a[0] + b[0], a[1] + b[1])
    def mul(self, a, b): return self.of(a[0] * b[0], np.abs(a[0]) * b[1] + np.abs(b[0]) * a[1] + a[1] * b[1])
    def scaled(self, a, f): return self.of(a[0] * f, a[1] * abs(f))

    def __call__(self, tree):
        op, *rest = tree
        if op == "tile":
            return self.tiles[rest[0]], np.zeros_like(self.tiles[rest[0]])
        if op == "number":
            return float(rest[0]), 0.0
        if op == "scalar":
            return float(self.scalars[rest[0]]), 0.0
        *rest, n = rest
        args = [self(r) for r in rest]
        first = self.tile(args[0])
        whole = lambda x: (np.broadcast_to(x[0], (6, 8)), np.broadcast_to(x[1], (6, 8)))  # noqa: E731
        if op in ("add", "sub", "mul"):
            a, b = (args[0], self.tile(args[1])) if n else (first, args[1])
            return self.squash(self.mul(a, b) if op == "mul" else self.add(a, b if op == "add" else (-b[0], b[1])))
        if op == "div":
            b = self.tile(args[1])
            d = (np.abs(b[0]) + 1, b[1] + 2.0**-20)
            return self.squash(self.of(args[0][0] / d[0], (args[1][1] * 0 + args[0][1]) / d[0] + np.abs(args[0][0]) * d[1] / d[0]**2 * 1.01))
        if op in ("max", "min"):
            return (np.maximum if op == "max" else np.minimum)(first[0], args[1][0]), np.maximum(first[1], args[1][1])
        if op in ("tanh", "sigmoid", "sin", "cos", "abs", "silu"):
            f = {**{k: v[0] for k, v in UNARY.items()}}[op]
            return self.of(f(first[0]), first[1] * 1.2 + 2.0**-19)
        if op == "neg":
            return -first[0], first[1]
        if op == "exp":
            v = np.exp(np.minimum(first[0], 1.0))
            return self.of(v, v * first[1] * 1.01 + v * 2.0**-20)
        if op == "sum":
            axis = [None, 0, 1][n]
            return self.squash(self.of(first[0].sum(axis, keepdims=True) / 8, first[1].sum(axis, keepdims=True) / 8 +
                                       np.abs(first[0]).sum(axis, keepdims=True) * 2.0**-20))
        if op == "rowmax":
            axis = [None, 0, 1][n]
            return first[0].max(axis, keepdims=True), first[1].max(axis, keepdims=True)
        if op == "where":
            a, b = self.tile(args[1]), args[2]
            c = np.floor(self.tiles[n]) > 0
            return np.where(c, a[0], b[0]), np.where(c, a[1], b[1])
        if op == "T":
            return self.squash(self.of(first[0] + first[0].sum() / 64, first[1] + first[1].sum() / 64 + np.abs(first[0]).sum() * 2.0**-20))
        if op == "inplace":
            return self.squash(self.add(self.scaled(whole(first), 0.5), self.scaled(args[1], 0.5) if isinstance(args[1][0], np.ndarray)
                                        else args[1]))
        if op == "half":
            return first
        if op == "fma":
            return self.squash(self.add(self.mul(first, self.tile(args[1])), self.tile(args[2])))
        if op == "dot":
            a, b = whole(first), whole(self.tile(args[1]))
            product = lambda x, y: self.of(x[0] @ y[0] / 128, (np.abs(x[0]) @ y[1] + x[1] @ np.abs(y[0]) + x[1] @ y[1]  # noqa: E731
                                                               + np.abs(x[0]) @ np.abs(y[0]) * 2.0**-19) / 128)
            return self.squash(product(product(a, (b[0].T, b[1].T)), b))
        acc, other, scale = whole(first), self.tile(args[1]), 0.5
        for i in range(n):
            acc = self.squash(self.add(self.add(self.scaled(acc, 0.5), self.scaled(other, scale)), (float(i), 0.0)))
            scale *= 0.5
        return acc


@settings(max_examples=500, derandomize=True, deadline=None, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large])
@given(seed=st.integers(0, 2**64 - 1), depth=st.integers(2, 7))
def test_random_expressions(chip, seed, depth):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, depth)
    tiles = [rng.uniform(-2, 2, s).astype(np.float32) for s in RANDOM_SHAPES]
    scalars = [int(rng.integers(-3, 4)), float(np.float32(rng.uniform(-2, 2)))]

    @jal.kernel
    def k(a, b, c, d, i, f, y):
        evaluate = OfTiles([tl.load(x, (0, 0), s) for x, s in zip((a, b, c, d), RANDOM_SHAPES)], [i, f])
        tl.store(y, (0, 0), evaluate.tile(evaluate(tree)) + evaluate.tiles[3] * 0)

    y = jal.zeros((6, 8), device=chip)
    k[1](*(jal.array(t, device=chip) for t in tiles), *scalars, y)
    reference = OfArrays([t.astype(np.float64) for t in tiles], scalars)
    value, error = (np.broadcast_to(v, (6, 8)) for v in reference.tile(reference(tree)))
    wrong = np.abs(y.numpy() - value) - error - 1e-6
    assert np.all(wrong <= 0), (tree, y.numpy(), value, error)


# ---- Random programs: the same text runs as Python on NumPy arrays ----
class Program:
    """Statements that rebind, alias, swap, nest and carry; a, b, c, t, u and lists hold tiles, p, q and the counters scalars. What
    changes in place (d, e) has no other name: a loop carries values, where Python would carry the object."""

    def __init__(self, rng):
        self.rng, self.lines, self.counters = rng, [], 0

    def pick(self, *choices):
        return choices[self.rng.integers(len(choices))]

    def tile(self):
        return self.pick("a", "b", "c", "d", "e", "t", "u", "L[0]", "L[1]", "T[1]", "D['k']")

    def scalar(self):
        return self.pick("p", "q", "T[0]", *(f"i{k}" for k in range(3)))

    def value(self):
        x, y, s = self.tile(), self.tile(), self.scalar()
        return self.pick(f"low({x} + {y})", f"low({x} - {y})", f"low({x} + 1)", f"low({x} + {s})", f"low(1 - {x})", f"low({x} + {y}[0:1])",
                         f"helper({x}, {s} % 3)")

    def statement(self, depth):
        x, y = self.rng.choice(["a", "b", "c", "t", "u", "L[0]", "L[1]", "D['k']"], 2, replace=False)
        p, q = self.pick(("p", "q"), ("q", "p"))
        kind = self.rng.integers(14 if depth < 3 else 11)
        if kind >= 11:
            if kind == 13:
                head = f"if {self.scalar()} {self.pick('<', '>=', '==', '!=')} {self.pick(self.scalar(), '2', '0')}:"
            else:
                bounds = self.pick("3", "2", f"{self.scalar()} % 3", f"{self.scalar()} % 2, 4", f"1, {self.scalar()} % 4 + 2, 2", "0")
                head = f"for i{depth} in RANGE({bounds}):"
            self.lines.append("    " * (depth + 1) + head)
            for _ in range(self.rng.integers(1, 5)):
                self.statement(depth + 1)
            return
        text = [f"{x} = {self.value()}", f"{x} = {y}", f"{x}, {y} = {y}, {x}", f"{x}, {y} = {y}, {self.value()}", f"{self.pick('d', 'e')} += {x}",
                f"{self.pick('d', 'e')} = {self.value()}", f"{p} = {self.scalar()}", f"{p}, {q} = {q}, ({p} + {q} + 1) % 7",
                f"{p} = ({p} * 2 + {self.scalar()} + 1) % 7", f"T = ({self.scalar()}, {self.value()})", f"{self.pick('d', 'e')} *= -1"][kind]
        self.lines.append("    " * (depth + 1) + text)

    def text(self):
        self.lines = ["def program(x, y, p, q):",
                      "    a, b, c, d, e = (LOAD(x, k) for k in range(5))",
                      "    t, u, L, T, D, i0, i1, i2 = a, b, [c, a], (p, b), {'k': c}, p * 1, q * 1, q"]
        for _ in range(self.rng.integers(3, 9)):
            self.statement(0)
        for n, name in enumerate(("a", "b", "c", "d", "e", "t", "u", "L[0]", "L[1]", "T[1]", "D['k']", "p", "q", "T[0]", "i0", "i1", "i2")):
            self.lines.append(f"    STORE(y, {n}, {name})")
        return "\n".join(self.lines)


HELPER = """
def helper(x, n):
    for _ in RANGE(n):
        x = low(x + 1)
    return x * 1
"""


def random_program(chip, seed, stages):
    text = HELPER + Program(np.random.default_rng(seed)).text()
    x = np.random.default_rng(seed).integers(-4, 5, (5, 4)).astype(np.float32)
    x[:, 0] = x[:, 1]
    on_arrays = {"RANGE": range, "low": lambda v: np.clip(v, -9, 9), "LOAD": lambda x, k: x[k].copy(),
                 "STORE": lambda y, k, v: y.__setitem__(k, v)}
    want = np.zeros((17, 4))
    exec(compile(text, "arrays", "exec"), on_arrays)
    on_arrays["program"](x.astype(np.float64), want, 3, 5)

    def store(y, k, v):
        tl.store(y, (k, 0), v if isinstance(v, tl.Tile) else tl.full(4, v))

    scope = {"RANGE": lambda *bounds: tl.range(*bounds, stages=stages), "low": lambda v: tl.minimum(tl.maximum(v, -9), 9),
             "LOAD": lambda x, k: tl.load(x, (k, 0), 4), "STORE": store, "WHEN": tl.when}
    exec(compile(re.sub(r"if (.*):", r"with WHEN(\1):", text), "chip", "exec"), scope)
    y = jal.zeros((17, 4), device=chip)
    jal.kernel(scope["program"])[1](jal.array(x, device=chip), y, 3, 5)
    assert np.array_equal(y.numpy(), want), f"seed {seed}\n{text}\n{y.numpy() - want}"


@settings(max_examples=300, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**64 - 1), stages=st.integers(1, 3))
def test_random_programs(chip, seed, stages):
    random_program(chip, seed, stages)


# ---- Errors: every mistake names the line that ends with "# here" and says what to write instead ----
def line_of(comment, function=None):
    """The line of this file (of a function) that ends with this comment."""
    if function is None:
        with open(__file__) as f:
            lines, first = f.readlines(), 1
    else:
        lines, first = inspect.getsourcelines(function)
    return first + next(n for n, text in enumerate(lines) if text.rstrip().endswith(f"# {comment}"))


MISTAKES = []


def mistake(*said):
    """A kernel of x (two dimensions), v (one), n (an int) and s (a float) that is refused with these words."""
    def keep(function):
        MISTAKES.append(pytest.param(function, said, id=function.__name__))
        return function
    return keep


@mistake("decided while the kernel is recorded", "with tl.when(a < b):")
def if_on_a_scalar(x, v, n, s):
    if n > 3:  # here
        tl.store(v, 0, tl.zeros(4))


@mistake("decided while the kernel is recorded")
def if_on_a_bare_scalar(x, v, n, s):
    if s:  # here
        pass


@mistake("decided while the kernel is recorded")
def while_on_a_scalar(x, v, n, s):
    while n < 3:  # here
        n += 1


@mistake("a tile is used in a Python condition", "tl.where(condition, a, b)")
def if_on_a_tile(x, v, n, s):
    t = tl.load(v, 0, 8)
    if t > 0:  # here
        pass


@mistake("nest them for \"and\"")
def and_of_conditions(x, v, n, s):
    with tl.when(n > 1 and n < 5):  # here
        pass


@mistake("conditions combined with & or |; nest")
def bitwise_and_of_conditions(x, v, n, s):
    with tl.when((n > 1) & (n < 5)):  # here
        pass


@mistake("tl.minimum and tl.maximum")
def builtin_min(x, v, n, s):
    min(n, 3)  # here


@mistake("comparison of float scalars")
def comparing_floats(x, v, n, s):
    with tl.when(s > 1):  # here
        pass


@mistake("tl.when of True", "conditions of Python values are plain \"if\"s")
def when_of_a_python_value(x, v, n, s):
    with tl.when(True):  # here
        pass


@mistake("tl.where of a comparison of scalars")
def where_of_scalars(x, v, n, s):
    tl.where(n > 3, 1, 2)  # here


@mistake("where Python needs a number now", "tl.range(...)")
def builtin_range_of_a_scalar(x, v, n, s):
    for _ in range(n):  # here
        pass


@mistake("a value of the chip is used where Python needs a number now")
def float_of_a_scalar(x, v, n, s):
    math.exp(s)  # here


@mistake("{} has no such operation".format("<int scalar>"))
def abs_of_a_scalar(x, v, n, s):
    abs(n)  # here


@mistake("** of scalars")
def power_of_a_scalar(x, v, n, s):
    n ** 2  # here


@mistake("/ of integer scalars; use //")
def dividing_integers(x, v, n, s):
    n / 2  # here


@mistake("mod of float scalars; there are + - * /")
def modulo_of_floats(x, v, n, s):
    s % 2  # here


@mistake("tl.maximum of float scalars, expected integers")
def maximum_of_float_scalars(x, v, n, s):
    tl.maximum(s, 2)  # here


@mistake("'text' where a number or a scalar is expected")
def scalar_of_text(x, v, n, s):
    tl.scalar("text")  # here


@mistake("is an integer that 64 bits do not hold")
def large_integer(x, v, n, s):
    n + 2**63  # here


@mistake("a coordinate is a float scalar, expected an integer; tl.to_int() converts")
def float_coordinate(x, v, n, s):
    tl.load(v, s, 8)  # here


@mistake("a coordinate is 1.5, expected an int or an integer scalar")
def python_float_coordinate(x, v, n, s):
    tl.load(v, 1.5, 8)  # here


@mistake("tl.load of x with 1 coordinates, it has 2 dimensions")
def too_few_coordinates(x, v, n, s):
    tl.load(x, 0, 8)  # here


@mistake("tl.store to v with 2 coordinates, it has 1 dimensions")
def too_many_coordinates(x, v, n, s):
    tl.store(v, (0, 0), tl.zeros(8))  # here


@mistake("tl.load of <tile (8,) float32>, expected an array argument of the kernel")
def load_of_a_tile(x, v, n, s):
    tl.load(tl.zeros(8), 0, 8)  # here


@mistake("tl.load of 2 rows from v, which has 1 dimension")
def rows_of_a_vector(x, v, n, s):
    tl.load(v, 0, (2, 8))  # here


@mistake("tl.store of a tile of shape (2, 8) to v, which has 1 dimension")
def storing_rows_to_a_vector(x, v, n, s):
    tl.store(v, 0, tl.zeros((2, 8)))  # here


@mistake("the value of tl.store is 1.0, expected a tile")
def storing_a_number(x, v, n, s):
    tl.store(v, 0, 1.0)  # here


@mistake("the value of tl.store is <array argument x, float32, 2 dimensions>, expected a tile; tl.load makes a tile of it")
def storing_an_array(x, v, n, s):
    tl.store(v, 0, x)  # here


@mistake("fill is <float scalar>, expected a Python number")
def scalar_fill(x, v, n, s):
    tl.load(v, 0, 8, fill=s)  # here


@mistake("a tile's shape holds a value of the chip; shapes must be Python ints")
def shape_of_a_scalar(x, v, n, s):
    tl.load(v, 0, n)  # here


@mistake("tile shape (2, 2, 2), expected one or two Python ints from 1 to 65535")
def three_dimensional_tile(x, v, n, s):
    tl.zeros((2, 2, 2))  # here


@mistake("tile shape 0, expected one or two Python ints")
def empty_tile(x, v, n, s):
    tl.zeros(0)  # here


@mistake("arithmetic on <array argument v, float32, 1 dimensions>, which lies in memory; tl.load(...) makes a tile of it")
def arithmetic_on_an_array(x, v, n, s):
    v * 2  # here


@mistake("arithmetic on <array argument x", "tl.load(...)")
def indexing_an_array(x, v, n, s):
    x[0]  # here


@mistake("arithmetic on <array argument x", "tl.load(...)")
def comparing_an_array(x, v, n, s):
    x == 0  # here


@mistake("<array argument v, float32, 1 dimensions> beside a tile", "tl.load makes a tile of it")
def an_array_beside_a_tile(x, v, n, s):
    tl.zeros(4) + v  # here


@mistake("len() of <array argument x", "x.shape[0]")
def len_of_an_array(x, v, n, s):
    len(x)  # here


@mistake("array argument x has no size; use tl.load(...)")
def attribute_of_an_array(x, v, n, s):
    x.size  # here


@mistake("shape[2] of <array argument x, float32, 2 dimensions>")
def extent_of_no_dimension(x, v, n, s):
    x.shape[2]  # here


@mistake("+ of shapes (4, 8) and (8, 4), which do not broadcast")
def shapes_that_do_not_broadcast(x, v, n, s):
    tl.zeros((4, 8)) + tl.zeros((8, 4))  # here


@mistake("*= of shapes (1, 8) and (4, 8): in place the left shape stays")
def growing_in_place(x, v, n, s):
    t = tl.zeros((1, 8))
    t *= tl.zeros((4, 8))  # here


@mistake("a transposed tile is changed in place")
def transposed_in_place(x, v, n, s):
    t = tl.zeros((4, 4)).T
    t += 1  # here


@mistake("tl.dot of shapes (4, 8) and (4, 8), expected [M, K] and [K, N]; the right side may be transposed: b.T")
def dot_of_shapes(x, v, n, s):
    tl.dot(tl.zeros((4, 8)), tl.zeros((4, 8)))  # here


@mistake("tl.dot of int8 and float32, expected two float types or int8 twice")
def dot_of_types(x, v, n, s):
    tl.dot(tl.zeros((4, 8), tl.int8), tl.zeros((8, 8)))  # here


@mistake("an operand of tl.dot is <array argument x, float32, 2 dimensions>, expected a tile; tl.load makes a tile of it")
def dot_of_arrays(x, v, n, s):
    tl.dot(x, x)  # here


@mistake("tl.dot into <tile (4, 4) float32>, expected shape (4, 8) of float32")
def dot_into_another_shape(x, v, n, s):
    tl.dot(tl.zeros((4, 8)), tl.zeros((8, 8)), acc=tl.zeros((4, 4)))  # here


@mistake("this tile's accumulators were added to at line", "use the result, or tl.copy() before")
def using_accumulators_that_moved_on(x, v, n, s):
    acc = tl.zeros((8, 8))
    more = acc + tl.dot(tl.zeros((8, 8)), tl.zeros((8, 8)))
    tl.store(x, (0, 0), acc)  # here
    tl.store(x, (0, 0), more)


@mistake("this product was added to accumulators", "call tl.dot again")
def using_a_product_that_was_added(x, v, n, s):
    acc, product = tl.zeros((8, 8)), tl.dot(tl.zeros((8, 8)), tl.zeros((8, 8)))
    acc += product
    tl.store(x, (0, 0), product)  # here


@mistake("tl.drain of <tile (8, 8) float32>, which is not in accumulators")
def draining_scratchpad(x, v, n, s):
    tl.drain(tl.zeros((8, 8)))  # here


@mistake("act 'tanh', expected none, relu, silu or gelu")
def draining_with_another_function(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), act="tanh")  # here


@mistake("row_scale of shape (8, 1), expected (1, 8)")
def draining_with_another_shape(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), row_scale=tl.zeros((8, 1)))  # here


@mistake("column_scale of shape (1, 8), expected (8, 1)")
def draining_with_another_column(x, v, n, s):
    tl.drain(tl.zeros((8, 8), space="acc"), column_scale=tl.zeros((1, 8)))  # here


@mistake("accumulators of bfloat16, expected float32 or int32")
def accumulators_of_bfloat16(x, v, n, s):
    tl.zeros((8, 8), tl.bfloat16, space="acc")  # here


@mistake("space 'hbm', expected auto, spm or acc")
def another_space(x, v, n, s):
    tl.zeros((8, 8), space="hbm")  # here


@mistake("tiles of int64, which the chip does not compute with")
def tiles_of_int64(x, v, n, s):
    tl.zeros(8, "int64")  # here


@mistake("'float77' is no element type")
def tiles_of_nothing(x, v, n, s):
    tl.zeros(8).to("float77")  # here


@mistake("needs 5242880 bytes of scratchpad, a core has 4194304", "512 x 1024 float32 at line", "Use smaller tiles")
def too_much_scratchpad(x, v, n, s):
    tiles = [tl.zeros((64, 1024)) for _ in range(4)]
    tiles += [tl.zeros((512, 1024))]
    tiles += [tl.zeros((512, 1024))]  # here


@mistake("needs 524288 bytes of accumulators, a core has 262144")
def too_many_accumulators(x, v, n, s):
    tl.zeros((256, 512), space="acc")  # here


@mistake("bytes of scratchpad, a core has 4194304", "8 stages of 512 x 1024 float32 at line", "fewer stages")
def too_many_stages(x, v, n, s):
    for i in tl.range(n, stages=8):
        tl.load(x, (i, 0), (512, 1024))  # here


@mistake("more than 31 registers are alive")
def too_many_scalars(x, v, n, s):
    [n + k for k in range(40)]  # here


@mistake("more than 64 tiles are alive")
def too_many_tiles(x, v, n, s):
    [tl.zeros(8) for k in range(70)]  # here


@mistake("len() of a tile; its extents are x.rows and x.columns")
def len_of_a_tile(x, v, n, s):
    len(tl.zeros(8))  # here


@mistake("a tile cannot be iterated over; use tl.item(tile, row, column)")
def iterating_over_a_tile(x, v, n, s):
    for _ in tl.zeros(8):  # here
        pass


@mistake("assignment to a part of a tile; use tl.where")
def assigning_to_a_part(x, v, n, s):
    t = tl.zeros(8)
    t[0:1] = 5  # here


@mistake("tl.slice_tile takes scalars")
def slicing_with_scalars(x, v, n, s):
    tl.zeros((8, 8))[n]  # here


@mistake("index 8 of a tile of shape (8, 8); expected Python ints and slices without steps")
def indexing_outside(x, v, n, s):
    tl.zeros((8, 8))[8]  # here


@mistake("3 indices for a tile of shape (8, 8)")
def too_many_indices(x, v, n, s):
    tl.zeros((8, 8))[0, 0, 0]  # here


@mistake("an empty part of a tile of shape (8, 8)")
def empty_part(x, v, n, s):
    tl.zeros((8, 8))[4:2]  # here


@mistake("a part of 4 x 4 from (6, <int scalar>) on, of a tile of shape (8, 8)")
def slice_outside(x, v, n, s):
    tl.slice_tile(tl.zeros((8, 8)), 6, n, (4, 4))  # here


@mistake("row 8 of a tile of shape (8, 8)")
def item_outside(x, v, n, s):
    tl.item(tl.zeros((8, 8)), 8)  # here


@mistake("np.exp of a tile; use tl.exp")
def numpy_function(x, v, n, s):
    np.exp(tl.zeros(8))  # here


@mistake("np.power of a tile; x * x")
def numpy_function_that_is_not_there(x, v, n, s):
    np.power(tl.zeros(8), 2)  # here


@mistake("np.mean of a tile; tl.sum(x, axis) / n")
def numpy_reduction(x, v, n, s):
    np.mean(tl.zeros(8))  # here


@mistake("a ndarray beside a tile, expected a tile, a scalar or a number")
def numpy_array_beside_a_tile(x, v, n, s):
    tl.zeros(8) + np.zeros(8)  # here


@mistake("a tile is used where Python needs a number now; tl.item")
def math_function(x, v, n, s):
    math.sqrt(tl.zeros(1))  # here


@mistake("** of tiles; multiply (x * x)")
def power_of_a_tile(x, v, n, s):
    tl.zeros(8) ** 2  # here


@mistake("// and % of tiles; tl.floor(a / b)")
def modulo_of_a_tile(x, v, n, s):
    tl.zeros(8) % 2  # here


@mistake("& | ^ ~ of tiles", "a * b for \"and\"")
def and_of_tiles(x, v, n, s):
    (tl.zeros(8) > 0) & (tl.zeros(8) < 1)  # here


@mistake("there is no tl.trans; x.T is the transposed tile")
def function_of_triton(x, v, n, s):
    tl.trans(tl.zeros((8, 8)))  # here


@mistake("there is no tl.softmaks; did you mean tl.softmax?")
def misspelt_function(x, v, n, s):
    tl.softmaks(tl.zeros((8, 8)))  # here


@mistake("a tile has no reshape; tiles keep their shape")
def method_of_numpy(x, v, n, s):
    tl.zeros((8, 8)).reshape(64)  # here


@mistake("unhashable type: 'Tile'")
def tile_as_a_key(x, v, n, s):
    {tl.zeros(8): 1}  # here


@mistake("missing 1 required positional argument: 'shape'")
def wrong_call(x, v, n, s):
    tl.load(v, 0)  # here


@mistake("axis 2 of a tile of shape (8, 8)")
def reducing_another_axis(x, v, n, s):
    tl.sum(tl.zeros((8, 8)), axis=2)  # here


@mistake("tl.max takes one tile and an axis; tl.maximum(a, b) works on two")
def max_of_two_tiles(x, v, n, s):
    tl.max(tl.zeros(8), tl.zeros(8))  # here


@mistake("axis is 'rows', expected a Python int")
def axis_by_name(x, v, n, s):
    tl.sum(tl.zeros((8, 8)), "rows")  # here


@mistake("argmax over axis 0, expected the last")
def argmax_of_columns(x, v, n, s):
    tl.argmax(tl.zeros((8, 8)), axis=0)  # here


@mistake("sum_squares over axis 0, expected the last")
def sum_squares_of_columns(x, v, n, s):
    tl.sum_squares(tl.zeros((8, 8)), axis=0)  # here


@mistake("top_k of 2000, expected 1 to 1024")
def top_k_of_many(x, v, n, s):
    tl.top_k(tl.zeros((8, 8)), 2000)  # here


@mistake("rmsnorm weight of shape (4,), expected (8,)")
def rmsnorm_of_another_weight(x, v, n, s):
    tl.rmsnorm(tl.zeros((8, 8)), tl.zeros(4))  # here


@mistake("eps of rmsnorm is <tile (8,) float32>, expected a number or a scalar")
def rmsnorm_of_a_tile_eps(x, v, n, s):
    tl.rmsnorm(tl.zeros((8, 8)), tl.zeros(8), tl.zeros(8))  # here


@mistake("rope of (8, 8) with heads of 3, 3 rotated")
def rope_of_odd_heads(x, v, n, s):
    tl.rope(tl.zeros((8, 8)), tl.zeros((1, 4)), tl.zeros((1, 4)), 3)  # here


@mistake("glu of (8, 8) and (8, 4) with act 'silu'")
def glu_of_shapes(x, v, n, s):
    tl.glu(tl.zeros((8, 8)), tl.zeros((8, 4)))  # here


@mistake("softmax_step of 8 rows, expected a tl.SoftmaxState of as many")
def softmax_step_of_another_state(x, v, n, s):
    tl.softmax_step(tl.zeros((8, 8)), tl.SoftmaxState(4))  # here


@mistake("softmax_step scaled by a tile")
def softmax_step_scaled_by_a_tile(x, v, n, s):
    tl.softmax_step(tl.zeros((8, 8)), tl.SoftmaxState(8), tl.zeros((8, 8)))  # here


@mistake("row_step -1 of tl.mask, expected at least 0")
def mask_downwards(x, v, n, s):
    tl.mask(tl.zeros((8, 8)), 0, n, row_step=-1)  # here


@mistake("the index of tl.gather is <tile (8,) float32>, expected one row of int32")
def gather_by_floats(x, v, n, s):
    tl.gather(x, tl.zeros(8), 4)  # here


@mistake("tl.gather of <array argument v, float32, 1 dimensions>, expected an array argument of 2 dimensions")
def gather_from_a_vector(x, v, n, s):
    tl.gather(v, tl.arange(8), 4)  # here


@mistake("unit 0 of tl.gather, expected at least 1")
def gather_of_nothing(x, v, n, s):
    tl.gather(x, tl.arange(8), 4, unit=0)  # here


@mistake("tl.scatter of 4 rows with 8 indices of 1 rows each")
def scatter_of_other_rows(x, v, n, s):
    tl.scatter(x, tl.arange(8), tl.zeros((4, 4)))  # here


@mistake("tl.fma of shapes", "do not broadcast")
def fma_of_shapes(x, v, n, s):
    tl.fma(tl.zeros((4, 8)), tl.zeros((4, 8)), tl.zeros((8, 8)))  # here


@mistake("axis 3 of the grid, expected 0, 1 or 2")
def fourth_axis(x, v, n, s):
    tl.program_id(3)  # here


@mistake("device_assert of True, expected a comparison of scalars")
def device_assert_of_a_python_value(x, v, n, s):
    tl.device_assert(True)  # here


@mistake("code -1 of device_assert")
def device_assert_of_a_negative_code(x, v, n, s):
    tl.device_assert(n > 0, -1)  # here


@mistake("static_assert failed: a reason")
def failed_static_assert(x, v, n, s):
    tl.static_assert(1 > 2, "a reason")  # here


@mistake("stages=9, expected 1 to 8")
def nine_stages(x, v, n, s):
    for _ in tl.range(n, stages=9):  # here
        pass


@mistake("step -1, expected above 0")
def downwards(x, v, n, s):
    for _ in tl.range(n, 0, -1):  # here
        pass


@mistake("a bound of tl.range is 2.5, expected an int or an integer scalar")
def range_of_a_float(x, v, n, s):
    for _ in tl.range(2.5):  # here
        pass


@mistake("tl.range stands alone in a for statement")
def comprehension(x, v, n, s):
    [tl.load(v, i, 8) for i in tl.range(n)]  # here


@mistake("tl.range stands alone in a for statement")
def enumerated(x, v, n, s):
    for _, i in enumerate(tl.range(n)):  # here
        pass


@mistake("the loop is left by break or return")
def breaking(x, v, n, s):
    for i in tl.range(n):
        tl.store(v, i, tl.zeros(8))
        break  # here
    tl.store(v, 0, tl.zeros(8))


@mistake("the loop is left by break or return")
def returning_from_a_loop(x, v, n, s):
    for i in tl.range(n):
        if i.kind == "int":
            return  # here


@mistake("the loop is left by break or return")
def breaking_inside_another_block(x, v, n, s):
    with tl.when(n > 3):
        for _ in tl.range(n):
            for _ in tl.range(n):
                break  # here


@mistake("return inside tl.when", "~condition")
def returning_from_a_condition(x, v, n, s):
    with tl.when(n > 3):
        return  # here
    tl.store(v, 0, tl.zeros(8))


@mistake("continue inside tl.when")
def continuing_from_a_condition(x, v, n, s):
    for i in tl.range(n):
        with tl.when(i == 3):
            if x.ndim == 2:
                continue  # here
        tl.store(v, i, tl.zeros(8))


@mistake("count is a Python number that changes in a loop of the chip", "count = tl.scalar(0)")
def counting_in_python(x, v, n, s):
    count = 0
    for _ in tl.range(n):  # here
        count = count + 1
    tl.store(v, count, tl.zeros(8))


@mistake("found is a Python number that changes in a condition of the chip", "found = tl.scalar(0)")
def counting_in_a_condition(x, v, n, s):
    found = 0
    with tl.when(n > 2):  # here
        found = 1
    tl.store(v, found, tl.zeros(8))


@mistake("parts grows or shrinks in a loop of the chip")
def appending_in_a_loop(x, v, n, s):
    parts = []
    for i in tl.range(n):  # here
        parts.append(tl.load(v, i, 8))
    for part in parts:
        tl.store(v, 0, part)


@mistake("best is None before the loop and <tile (8,) float32> at its end")
def starting_from_none(x, v, n, s):
    best = None
    for i in tl.range(n):  # here
        t = tl.load(v, i, 8)
        best = t if best is None else tl.maximum(best, t)
    tl.store(v, 0, best)


@mistake("acc is a tile before the loop and 0 at its end")
def a_tile_becomes_a_number(x, v, n, s):
    acc = tl.zeros(8)
    for _ in tl.range(n):  # here
        tl.store(v, 0, acc)
        acc = 0


@mistake("count is a scalar before the loop and <tile (8,) float32> at its end")
def a_scalar_becomes_a_tile(x, v, n, s):
    count = tl.scalar(0)
    for _ in tl.range(n):  # here
        count = count + tl.zeros(8)
    tl.store(v, 0, count)


@mistake("acc changes from <tile (1, 8) float32> to <tile (4, 8) float32> in the loop; it must keep shape and type")
def a_shape_changes(x, v, n, s):
    acc = tl.zeros((1, 8))
    for _ in tl.range(n):  # here
        acc = acc + tl.zeros((4, 8))
    tl.store(x, (0, 0), acc)


@mistake("acc changes from <tile (8,) bfloat16> to <tile (8,) float32>", "x.to(bfloat16) converts")
def a_type_changes(x, v, n, s):
    acc = tl.zeros(8, tl.bfloat16)
    for _ in tl.range(n):  # here
        acc = acc * 2
    tl.store(v, 0, acc)


@mistake("count changes from int to float in the loop; use tl.to_float() or tl.to_int()")
def a_scalar_changes_its_kind(x, v, n, s):
    count = tl.scalar(0)
    for _ in tl.range(n):  # here
        count = count + 0.5
    tl.store(v, 0, tl.full(8, count))


@mistake("flag is a comparison before the loop and a Condition at its end")
def a_condition_changes(x, v, n, s):
    flag = n > 2
    for _ in tl.range(n):  # here
        with tl.when(flag):
            tl.store(v, 0, tl.zeros(8))
        flag = n > 3


@mistake("t is a transposed tile before the loop and changes in it; start with tl.copy(x.T)")
def a_transposed_tile_changes(x, v, n, s):
    t = tl.zeros((4, 4)).T
    for _ in tl.range(n):  # here
        t = t + 1
    tl.store(x, (0, 0), t)


@mistake("the kernel returns <tile (8,) float32>; results are stored into array arguments")
def returning_a_value(x, v, n, s):
    if v.ndim == 5:
        return None
    t = tl.zeros(8)
    return t  # here


@pytest.mark.parametrize("function, said", MISTAKES)
def test_mistakes(chip, function, said):
    with pytest.raises(jal.CompileError) as e:
        jal.kernel(function).compile((F, 2), F, int, float, device=chip)
    text = str(e.value)
    # An error at the end of a loop is told where the next thing starts: the for statement.
    line = line_of("here", function)
    assert (e.value.file, e.value.line) == (__file__, line), text
    assert text.startswith(f"{__file__}:{line}: kernel {function.__name__}: ")
    for part in said:
        assert part in text, text


def test_mistakes_in_helpers_name_the_innermost_line_of_the_file(chip):
    def helper(t):
        return t + tl.zeros((3, 3))  # in the helper

    def k(v):
        helper(tl.zeros((2, 2)))

    with pytest.raises(jal.CompileError) as e:
        jal.kernel(k).compile(F, device=chip)
    assert e.value.line == line_of("in the helper")
    scope = {"tl": tl}
    exec(compile("def elsewhere(t):\n    return t + tl.zeros((3, 3))\n", "/somewhere/else.py", "exec"), scope)

    def m(v):
        scope["elsewhere"](tl.zeros((2, 2)))  # calls another file

    with pytest.raises(jal.CompileError) as e:
        jal.kernel(m).compile(F, device=chip)
    assert e.value.line == line_of("calls another file") and e.value.file == __file__


def test_semaphores_of_one_loop_body(run):
    """A body that would need more semaphores than there are is cut by joins."""
    def k(x, n, y):
        for i in tl.range(n, stages=2):
            rows = [tl.load(x, (i * 12 + k, 0), (1, 16)) for k in range(12)]
            for k, t in enumerate(rows):
                tl.store(y, (i * 12 + k, 0), tl.dot(tl.exp(t).T, t)[0] + rows[11 - k])

    x = normal(36, 16)
    d = x.astype(np.float64)
    want = np.exp(d[:, :1]) * d + d.reshape(3, 12, 16)[:, ::-1].reshape(36, 16)
    close(run(k, x, 3, out=(36, 16)), want, rtol=1e-5, atol=1e-5)


def test_outside_a_kernel():
    with pytest.raises(jal.CompileError, match="the tile language works only inside a function decorated with @jalapeno.kernel"):
        tl.zeros(8)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tl.nothing
    assert not hasattr(tl, "nothing")
    # In the kernel of one thread another thread is outside.
    assert set(tl.__all__) >= {"load", "store", "dot", "range", "when", "zeros", "float32", "Tile"} and "numbers" not in tl.__all__
    assert all(hasattr(tl, n) for n in tl.__all__)

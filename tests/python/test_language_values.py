"""Operators, functions, loading and storing against NumPy in double precision."""
import math

import numpy as np
import pytest

import jalapeno as jal
from jalapeno import language as tl
from language_support import gelu, DTYPES, F, I, UNARY, chip, close, normal, plain, run  # noqa: F401 - fixtures


# ---- Elementwise ----
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
        assert t.dtype is jal.dtype(TO) and t.shape == (1, 14)
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
            d / (1 + np.exp(-d)) * d * 2, d * d, gelu(d) * d, np.maximum(d, 0) * d, e / e.sum(1, keepdims=True)]
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
    want = [p * r * c, silu, np.maximum(p, 0), silu, gelu(p), p * 2 + r, np.exp(p * 0.1), np.vstack([p[2:4] + r, blank]),
            p, p.T, p + 1, 2 * p, p, np.where(p > 0, p, r), np.vstack([p.sum(0)[None], blank, blank[:1]])]
    got = run(k, a, b, row, column, out=(120, 8))
    for n, w in enumerate(want):
        close(got[8 * n:8 * n + 8], w, rtol=5e-3 if n == 8 else 2e-5, atol=2e-5)

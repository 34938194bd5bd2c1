"""What loops and conditions carry, and how much fits."""
import gc
import inspect
import os

import numpy as np
import pytest

import jalapeno as jal
from jalapeno import language as tl
from language_support import F, chip, close, line_of, normal, run  # noqa: F401 - fixtures


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


# ---- Values of a condition, after it ----
def test_a_value_made_under_a_condition_is_not_used_after_it():
    @jal.kernel
    def tile(x, y):
        with tl.when(tl.program_id(0) < 1):
            t = tl.load(x, 0, 8)
            tl.store(y, 0, t)
        tl.store(y, 0, t)  # after

    @jal.kernel
    def scalar(x, y):
        for i in tl.range(2):
            with tl.when(i < 1):
                n = i + 1
            tl.store(y, n, tl.load(x, 0, 8))  # after

    for kernel in (tile, scalar):
        with pytest.raises(jal.CompileError, match="was made inside the tl.when of line .* and is used after it") as e:
            kernel.compile(jal.float32, jal.float32)
        source, first = inspect.getsourcelines(kernel.function)
        assert e.value.line == first + next(n for n, text in enumerate(source) if "# after" in text)

    @jal.kernel
    def given_before(x, y):
        t = tl.zeros(8)
        n = tl.scalar(0)
        with tl.when(tl.program_id(0) < 1):
            t = tl.load(x, 0, 8)
            n = n + 1
        tl.store(y, 0, t * n)

    x, y = jal.array(np.arange(8, dtype=np.float32)), jal.empty(8)
    given_before[1](x, y)
    assert np.array_equal(y.numpy(), np.arange(8))


def after_a_condition(x, n, y):
    with tl.when(n < 1):
        c = n + 1 < 5
    with tl.when(c):  # after
        tl.store(y, 0, tl.zeros(8))


def asserted_after_it(x, n, y):
    with tl.when(n < 1):
        c = n + 1 < 5
    tl.device_assert(~c)  # after


def state_after_it(x, n, y):
    with tl.when(n < 1):
        state = tl.SoftmaxState(1)
    tl.softmax_step(tl.load(x, 0, 8), state)  # after


def copied_after_it(x, n, y):
    with tl.when(n < 1):
        m = n + 3
    tl.scalar(m)  # after


def counted_after_it(x, n, y):
    with tl.when(n < 1):
        numbers = tl.range(n)
    with tl.when(n < 1):
        bound = n + 2
        numbers = tl.range(bound)
    for i in numbers:  # after
        tl.store(y, i, tl.zeros(1))


def transposed_after_it(x, n, y):
    with tl.when(n < 1):
        t = tl.load(x, 0, 8).T
    tl.store(y, 0, tl.full((1, 1), 1) @ t.T)  # after


def product_after_it(x, n, y):
    a = tl.zeros((8, 8))
    with tl.when(n < 1):
        product = a @ a
    a += product  # after


def part_after_it(x, n, y):
    t = tl.load(x, 0, 8)
    with tl.when(n < 1):
        part = t[0:4]
    tl.store(y, 0, part)  # after


def other_arm(x, n, y):
    with tl.when(n < 1):
        t = tl.full(8, 1)
    with tl.when(n >= 1):
        t = tl.full(8, 2)
    tl.store(y, 0, t)  # after


def value_of_a_loop_inside(x, n, y):
    with tl.when(n < 1):
        for i in tl.range(3):
            t = tl.full(8, i)
    tl.store(y, 0, t)  # after


@pytest.mark.parametrize("k", [after_a_condition, asserted_after_it, state_after_it, copied_after_it, counted_after_it, transposed_after_it,
                               product_after_it, part_after_it, other_arm, value_of_a_loop_inside], ids=lambda k: k.__name__)
def test_nothing_made_under_a_condition_is_used_after_it(chip, k):
    with pytest.raises(jal.CompileError, match="is used after it") as e:
        jal.kernel(k).compile(F, int, F, device=chip)
    assert (e.value.file, e.value.line) == (__file__, line_of("after", k))


@pytest.mark.parametrize("n", [0, 1])
def test_names_of_a_condition_serve_again_after_it(run, n):
    """What lived inside only is no value that a later block would have to carry; what lies outside may be seen from inside."""
    def k(x, n, y):
        a, total = tl.load(x, (0, 0), (4, 4)), tl.zeros((4, 4))
        with tl.when(n < 1):
            t, m, parts, flipped, alias = tl.full(4, 3), n + 3, [tl.full(4, 1)], a.T, a
            tl.store(y, (0, 0), t * m + parts[0])
            a[0:1] += 1
        for i in tl.range(3):
            t, m = tl.full(4, i), i * 2
            parts = [t, t + 1]
            total = total + parts[1]
        with tl.when(n >= 1):
            t = tl.full(4, 7)
            tl.store(y, (0, 0), t)
            total = total + t
        acc = tl.zeros((4, 4))
        with tl.when(n < 1):
            acc = acc + a @ a
        tl.store(y, (1, 0), tl.full(4, m))
        tl.store(y, (2, 0), total[0:1])
        tl.store(y, (3, 0), flipped[0:1])
        tl.store(y, (4, 0), alias[0:1])
        tl.store(y, (5, 0), acc)

    x = normal(4, 4)
    a = x.astype(np.float64)
    a[0] += n < 1
    first = [[10] * 4, [4] * 4, [6] * 4] if n < 1 else [[7] * 4, [4] * 4, [13] * 4]
    close(run(k, x, n, out=(9, 4)), np.vstack([first, a.T[:1], a[:1], a @ a * (n < 1)]), rtol=1e-5, atol=1e-5)

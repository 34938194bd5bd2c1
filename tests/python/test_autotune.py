"""Choosing constants by measuring."""
import numpy as np
import pytest

import jalapeno as jal
from jalapeno import language as tl


@jal.kernel
def add_one(x, y, *, BLOCK, EXTRA=0):
    i = tl.program_id(0) * BLOCK
    tl.store(y, i, tl.load(x, i, BLOCK) + 1)


@jal.kernel
def accumulate(x, total, *, BLOCK):
    """Changes its argument: a trial on the caller's array would show."""
    for i in tl.range(0, x.shape[0], BLOCK):
        tl.store(total, i, tl.load(total, i, BLOCK) + tl.load(x, i, BLOCK))


def grid(n):
    return lambda c: jal.cdiv(n, c["BLOCK"])


def test_the_best_is_chosen_and_says_whose_clock():
    tuned = jal.autotune(add_one, {"BLOCK": [16, 256, 4096]})
    x, y = jal.array(np.arange(5000, dtype=np.float32)), jal.empty(5000)
    with pytest.raises(KeyError, match="has not been tuned for these types and shapes"):
        tuned.choice(x, y)
    tuned[grid(5000)](x, y)
    assert np.array_equal(y.numpy(), np.arange(5000) + 1)
    choice = tuned.choice(x, y)
    assert choice.ns == min(t.ns for t in choice.trials) and len(choice.trials) == 3
    assert choice.clock == "modelled chip, assumed-1, assumed"
    assert "BLOCK=" in str(choice) and "modelled chip" in str(choice)
    # Modelled time does not depend on this machine: the same again.
    again = jal.autotune(add_one, {"BLOCK": [16, 256, 4096]})
    again[grid(5000)](x, y)
    assert again.choice(x, y).constants == choice.constants


def test_the_hosts_clock():
    tuned = jal.autotune(add_one, [{"BLOCK": 64}, {"BLOCK": 1024}], clock="host", repeat=3)
    x, y = jal.ones(2000), jal.empty(2000)
    tuned[grid(2000)](x, y)
    assert tuned.choice(x, y).clock == "this machine"
    assert all(t.ns > 0 for t in tuned.choice(x, y).trials)


def test_each_shape_is_tuned_once():
    tuned = jal.autotune(add_one, {"BLOCK": [64, 128]})
    for n in (100, 200, 100):
        x, y = jal.ones(n), jal.empty(n)
        tuned[grid(n)](x, y, EXTRA=1)
        assert y.numpy().tolist() == [2.0] * n
    assert len(tuned._choices) == 2


def test_trials_do_not_touch_the_callers_arrays():
    tuned = jal.autotune(accumulate, {"BLOCK": [32, 64, 128]})
    x, total = jal.ones(256), jal.zeros(256)
    tuned[1](x, total)
    assert total.numpy().tolist() == [1.0] * 256


def test_what_cannot_be_built_is_told_and_left_out():
    @jal.kernel
    def large(x, y, *, ROWS):
        tl.store(y, (0, 0), tl.load(x, (0, 0), (ROWS, 8192)))
    tuned = jal.autotune(large, {"ROWS": [8, 4096]})
    x, y = jal.ones((8, 16)), jal.empty((8, 16))
    tuned[1](x, y)
    choice = tuned.choice(x, y)
    assert choice.constants == {"ROWS": 8}
    assert "bytes of scratchpad" in next(t.reason for t in choice.trials if t.ns is None)
    none = jal.autotune(large, {"ROWS": [4096]})
    with pytest.raises(jal.CompileError, match="none of 1 sets of constants works; the first: .*scratchpad"):
        none[1](x, y)


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="autotune of a function, expected a kernel made by @jalapeno.kernel"):
        jal.autotune(lambda x: None, {"A": [1]})
    with pytest.raises(ValueError, match="clock 'cpu', expected modelled or host"):
        jal.autotune(add_one, {"BLOCK": [1]}, clock="cpu")
    with pytest.raises(ValueError, match="kernel add_one has no constant BM; it has BLOCK, EXTRA"):
        jal.autotune(add_one, {"BM": [1]})
    with pytest.raises(ValueError, match="no constants to try"):
        jal.autotune(add_one, {"BLOCK": []})

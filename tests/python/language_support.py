"""What the tests of the tile language share: a chip that checks every access, one that does not, and launches on NumPy arrays."""
import inspect
import math
import os

os.environ.setdefault("JALAPENO_CACHE_DIR", "")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import jalapeno as jal  # noqa: E402

DTYPES = [jal.float32, jal.bfloat16, jal.float16, jal.int8, jal.int32]
F, I = jal.float32, jal.int32


@pytest.fixture(scope="module")
def chip():
    """Finds races between engines, reads of what nothing wrote and boxes outside their arrays in every test here."""
    with jal.Device("emu:?hbm=256M&watchdog_ms=60000&check=races,uninit,oob") as device:
        yield device


@pytest.fixture(scope="module")
def plain():
    with jal.Device("emu:?hbm=256M&watchdog_ms=60000") as device:
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


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


UNARY = {
    "exp": (np.exp, -5, 5), "log": (np.log, 0.1, 9), "sqrt": (np.sqrt, 0, 9), "rsqrt": (lambda x: 1 / np.sqrt(x), 0.1, 9),
    "reciprocal": (lambda x: 1 / x, 0.1, 9), "tanh": (np.tanh, -4, 4), "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -9, 9),
    "silu": (lambda x: x / (1 + np.exp(-x)), -9, 9), "gelu": (gelu, -4, 4), "relu": (lambda x: np.maximum(x, 0), -4, 4),
    "sin": (np.sin, -7, 7), "cos": (np.cos, -7, 7), "floor": (np.floor, -9, 9), "abs": (np.abs, -9, 9),
}


def line_of(comment, function=None):
    """The line of the caller's file (of a function) that ends with this comment."""
    if function is None:
        with open(inspect.stack()[1].filename) as f:
            lines, first = f.readlines(), 1
    else:
        lines, first = inspect.getsourcelines(function)
    return first + next(n for n, text in enumerate(lines) if text.rstrip().endswith(f"# {comment}"))

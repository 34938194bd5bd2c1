"""What to write instead of a function that is not there, such as another library's name for it.

Knows names only. language.py tells which ones it has.
"""
from __future__ import annotations

import difflib

known: list[str] = []  # the language's functions


_ELSEWHERE = {
    "constexpr": "constants are keyword-only parameters, after *", "atomic_add": "tl.store(..., add=True) adds, not atomically",
    "trans": "x.T is the transposed tile", "transpose": "x.T is the transposed tile", "matmul": "tl.dot(a, b), or a @ b",
    "static_range": "Python's range runs while recording", "broadcast_to": "operators broadcast", "astype": "x.to(dtype) converts",
    "power": "x * x, or tl.exp(tl.log(x) * p)", "pow": "x * x, or tl.exp(tl.log(x) * p)", "mean": "tl.sum(x, axis) / n",
    "concatenate": "store the parts one by one", "cat": "store the parts one by one", "expf": "tl.exp",
    "reshape": "tiles keep their shape; tl.load takes another one", "view": "tiles keep their shape; tl.load takes another one",
    "expand_dims": "(rows, 1) and (1, columns) broadcast", "make_block_ptr": "tl.load(array, coordinates, shape)",
    "absolute": "tl.abs", "amax": "tl.max", "amin": "tl.min", "printf": "tl.device_assert stops a kernel",
    "device_print": "tl.device_assert stops a kernel", "size": "x.rows * x.columns", "square": "x * x", "negative": "-x",
}


def _instead(name: str) -> str:
    """What to write instead of a function that is not there."""
    if name in known:
        return f"; use tl.{name}"
    if name in _ELSEWHERE:
        return f"; {_ELSEWHERE[name]}"
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean tl.{near[0]}?" if near else "; help(jalapeno.language) lists what there is"

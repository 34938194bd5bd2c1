"""Random expressions and random programs: the same text as Python on NumPy arrays and on the chip."""
import re

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

import jalapeno as jal
from jalapeno import language as tl
from language_support import UNARY, chip  # noqa: F401 - fixtures


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

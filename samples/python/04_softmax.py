"""Fused softmax: one kernel instead of four, and why that is faster.

What you learn: reductions along rows, values that stay in scratchpad between steps, what fill= is for, and how to count
the traffic that fusion saves.

    python3 samples/python/04_softmax.py --picture softmax.png
"""
import math

import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture

# ---- Four kernels. Each reads its input from HBM and writes its result there ----
# COLUMNS is the width of a tile; a row is narrower. Outside the array a load reads `fill`: -inf is never the largest,
# and exp(-inf) adds 0 to a sum.


def my_blocks(out, rows):
    """A plain function may be called while a kernel is recorded: the loop over this program's blocks of rows."""
    return tl.range(tl.program_id(0) * rows, out.shape[0], tl.num_programs(0) * rows)


@jal.kernel
def row_max(x, out, *, ROWS, COLUMNS):
    for r in my_blocks(out, ROWS):
        tl.store(out, (r, 0), tl.max(tl.load(x, (r, 0), (ROWS, COLUMNS), fill=-math.inf), axis=1))


@jal.kernel
def exp_of_difference(x, largest, out, *, ROWS, COLUMNS):
    for r in my_blocks(out, ROWS):
        tl.store(out, (r, 0), tl.exp(tl.load(x, (r, 0), (ROWS, COLUMNS)) - tl.load(largest, (r, 0), (ROWS, 1))))


@jal.kernel
def row_sum(x, out, *, ROWS, COLUMNS):
    for r in my_blocks(out, ROWS):
        tl.store(out, (r, 0), tl.sum(tl.load(x, (r, 0), (ROWS, COLUMNS)), axis=1))


@jal.kernel
def divide(x, total, out, *, ROWS, COLUMNS):
    for r in my_blocks(out, ROWS):
        tl.store(out, (r, 0), tl.load(x, (r, 0), (ROWS, COLUMNS)) / tl.load(total, (r, 0), (ROWS, 1)))


# ---- One kernel. A block of rows is read once, all steps work in scratchpad, and the result is written once ----
# A reduced axis stays with extent 1, so x - tl.max(x, axis=1) broadcasts as in NumPy with keepdims=True.
@jal.kernel
def softmax(x, out, *, ROWS, COLUMNS):
    for r in my_blocks(out, ROWS):
        block = tl.load(x, (r, 0), (ROWS, COLUMNS), fill=-math.inf)
        block -= tl.max(block, axis=1)
        block = tl.exp(block)
        block /= tl.sum(block, axis=1)
        tl.store(out, (r, 0), block)


ROWS, WIDTH = 4096, 1000
SHAPE = dict(ROWS=16, COLUMNS=1024)
GRID = 64
host = 4 * np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
x = jal.array(host)
out, largest, total = jal.empty((ROWS, WIDTH)), jal.empty((ROWS, 1)), jal.empty((ROWS, 1))
e = np.exp(host.astype(np.float64) - host.max(axis=1, keepdims=True))
want = e / e.sum(axis=1, keepdims=True)


def error() -> float:
    """The largest relative error, and out is cleared for the next."""
    worst = float(np.max(np.abs(out.numpy() - want) / want))
    out.fill(0)
    return worst


separate = [row_max.report(GRID, x, largest, **SHAPE), exp_of_difference.report(GRID, x, largest, out, **SHAPE),
            row_sum.report(GRID, out, total, **SHAPE), divide.report(GRID, out, total, out, **SHAPE)]
separate_error = error()
fused = softmax.report(GRID, x, out, **SHAPE)
fused_error = error()

chip = f"modelled, assumed chip (configuration {fused.config})"
print(f"softmax of {ROWS} rows of {WIDTH}; {chip}")
print(f"{'kernel':20}{'modelled us':>12}{'MB read':>10}{'MB written':>12}{'uJ':>8}")


def row(name: str, reports: list) -> None:
    us, uj = sum(r.device_ns for r in reports) / 1e3, sum(r.energy_joules for r in reports) * 1e6
    read, written = (sum(getattr(r, f"hbm_{way}_bytes") for r in reports) / 1e6 for way in ("read", "write"))
    print(f"{name:20}{us:12.1f}{read:10.1f}{written:12.1f}{uj:8,.0f}")


for r in separate:
    row("  " + r.kernel, [r])
row("four kernels", separate)
row("one kernel", [fused])

check(f"four kernels: relative error {separate_error:.1e}", separate_error < 5e-6)
check(f"one kernel: relative error {fused_error:.1e}", fused_error < 5e-6)
check("the fused kernel reads x once and writes the result once",
      fused.hbm_read_bytes == fused.hbm_write_bytes == host.nbytes)
check("and is faster than the four", fused.device_ns < sum(r.device_ns for r in separate))

# Rows in a block: a load takes the HBM's latency however small it is, so small blocks mostly wait.
print(f"\nrows in a block of the fused kernel; {chip}")
for rows in (1, 4, 16, 32):
    print(f"  {rows:>3}: {softmax.report(GRID, x, out, ROWS=rows, COLUMNS=1024).device_ns / 1e3:6.1f} us modelled")

# The same operation of the library, for the values (it takes rows of any length).
check("jalapeno.ops.softmax agrees", np.allclose(jal.ops.softmax(x).numpy(), want, rtol=5e-6, atol=0))


def draw(plt):
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    for axis, value, label in ((left, lambda r: r.device_ns / 1e3, "modelled us"),
                               (right, lambda r: (r.hbm_read_bytes + r.hbm_write_bytes) / 1e6, "HBM traffic, MB")):
        bottom = 0.0
        for r in separate:
            axis.bar("four kernels", value(r), bottom=bottom, label=r.kernel)
            bottom += value(r)
        axis.bar("one kernel", value(fused), color="black", label="fused")
        axis.set_ylabel(label)
    right.legend(fontsize=8)
    fig.suptitle(f"Softmax of {ROWS} x {WIDTH}: {chip}")


picture(draw)

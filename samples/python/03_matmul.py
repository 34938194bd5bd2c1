"""Tiled matrix multiplication, from naive to fast, on a roofline plot.

What you learn: tl.dot and accumulators, a grid of programs, stages that hide the time of loads, what the size and type
of tiles change, and how to read kernel.report().

    python3 samples/python/03_matmul.py --picture matmul.png
"""
import time

import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture


# One program makes all of c, tile by tile. It waits for both loads before each product, and 63 of 64 cores do nothing.
@jal.kernel
def naive(a, b, c, *, T):
    for i in tl.range(0, c.shape[0], T):
        for j in tl.range(0, c.shape[1], T):
            acc = tl.zeros((T, T))
            for k in tl.range(0, a.shape[1], T):
                acc += tl.dot(tl.load(a, (i, k), (T, T)), tl.load(b, (k, j), (T, T)))
            tl.store(c, (i, j), acc)


# The two outer loops become the grid: every program makes one tile of c, and the cores share the programs. What tl.dot
# is added to lies in the accumulators of the matrix engine, so the sum does not leave them before the store.
#
# STAGES = 2 gives the loads of the loop two buffers: the tiles of the next step arrive while it multiplies these.
# M, N: an element of a is loaded once for each N columns of c, one of b for each M rows: larger tiles, less traffic.
# A kernel is built for the types of its arguments: with bfloat16 arrays, loads carry half the bytes, and the matrix
# engine's (assumed) rate is four times that of float32. Sums stay float32.
@jal.kernel
def tiled(a, b, c, *, M, N, K, STAGES):
    i, j = tl.program_id(0) * M, tl.program_id(1) * N
    acc = tl.zeros((M, N))
    for k in tl.range(0, a.shape[1], K, stages=STAGES):
        acc += tl.dot(tl.load(a, (i, k), (M, K)), tl.load(b, (k, j), (K, N)))
    tl.store(c, (i, j), acc)


def grid(constants: dict) -> tuple[int, int]:
    return tl.cdiv(SIZE, constants["M"]), tl.cdiv(SIZE, constants["N"])


SIZE = 2048
FLOP = 2 * SIZE**3
rng = np.random.default_rng(0)
a, b = (jal.array(rng.standard_normal((SIZE, SIZE), dtype=np.float32)) for _ in range(2))
a16, b16 = a.astype(jal.bfloat16), b.astype(jal.bfloat16)
c = jal.empty((SIZE, SIZE))

p = a.device.properties
peak = p["peak_tflops_bf16"]
bandwidth = p["hbm_gbytes_per_second"]

steps = [
    ("naive: 1 program, 64 x 64", naive, 1, (a, b), dict(T=64)),
    ("grid of programs, 64 x 64", tiled, grid, (a, b), dict(M=64, N=64, K=64, STAGES=1)),
    ("the same, 2 stages", tiled, grid, (a, b), dict(M=64, N=64, K=64, STAGES=2)),
    ("128 x 128, 2 stages", tiled, grid, (a, b), dict(M=128, N=128, K=128, STAGES=2)),
    ("bfloat16, 128 x 128, 2 stages", tiled, grid, (a16, b16), dict(M=128, N=128, K=128, STAGES=2)),
    ("bfloat16, 256 x 256, 2 stages", tiled, grid, (a16, b16), dict(M=256, N=256, K=128, STAGES=2)),
]

# "bound" names the engine (or HBM) with the most to do, "of it" how near the launch came to that limit. A small share
# means that everything waits for something else, such as loads that nothing hides.
chip = f"modelled, assumed chip (configuration {p['config_name']})"
print(f"c = a @ b of {SIZE} x {SIZE}; {chip}: {peak:,.0f} TFLOP/s in bfloat16, {bandwidth:,.0f} GB/s of HBM")
print(f"{'':32}{'modelled us':>12}{'TFLOP/s':>9}{'of peak':>9}  {'bound':<7}{'of it':>6}{'flop/byte':>11}")
points, reports, results = [], {}, {}
begin = time.perf_counter()
for label, kernel, where, inputs, constants in steps:
    c.fill(0)
    r = kernel.report(where, *inputs, c, **constants)
    tflops = FLOP / r.device_ns / 1e3
    intensity = FLOP / (r.hbm_read_bytes + r.hbm_write_bytes)
    print(f"{label:32}{r.device_ns / 1e3:12,.1f}{tflops:9,.1f}{tflops / peak:9.2%}  "
          f"{r.bound:<7}{r.roofline:6.0%}{intensity:11.1f}")
    points.append((label, intensity, tflops))
    reports[label] = r
    results[label] = c.numpy()
print(f"this machine: {time.perf_counter() - begin:.1f} s to emulate all of them (it says nothing about the chip)")

print("\nthe last one in full:")
print(reports[steps[-1][0]])

# Is it right? float32 steps against NumPy's product, bfloat16 steps against the product of the rounded inputs; one row
# in 16, because NumPy alone may take longer than the emulator.
print()
rows = slice(None, None, 16)
want, want16 = a.numpy()[rows] @ b.numpy(), a16.numpy()[rows] @ b16.numpy()
for label, _, _, inputs, _ in steps:
    error = np.abs(results[label][rows] - (want if inputs[0] is a else want16)).max()
    check(f"{label}: largest error {error:.1e}", error < 1e-6 * SIZE)
times = [r.device_ns for r in reports.values()]
check("every step is faster than the one before", all(x > y for x, y in zip(times, times[1:])))


def draw(plt):
    fig, ax = plt.subplots(figsize=(9, 5.5))
    x = np.geomspace(8, 2000, 200)
    limit = np.minimum(peak, x * bandwidth / 1e3)
    ax.loglog(x, limit, color="black", label="assumed limit, bfloat16: HBM, then matrix engine")
    ax.axhline(peak / 4, color="black", ls=":", lw=1, label="assumed matrix rate, float32 (a quarter)")
    for n, (label, intensity, tflops) in enumerate(points):
        ax.plot(intensity, tflops, "o", ms=9, label=f"{n + 1}. {label}")
        ax.annotate(str(n + 1), (intensity, tflops), xytext=(8, -4), textcoords="offset points")
    ax.set_xlabel("arithmetic intensity: flop per byte of HBM traffic")
    ax.set_ylabel("TFLOP/s, modelled")
    ax.set_title(f"Matrix multiplication of {SIZE} x {SIZE}: {chip}")
    ax.grid(True, which="both", alpha=0.2)
    ax.legend(fontsize=8, loc="lower right")


picture(draw)

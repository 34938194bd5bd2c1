"""Flash attention: causal attention that never stores its scores.

What you learn: an online softmax (tl.SoftmaxState, tl.softmax_step), causal masks without comparing tiles, a product
with a transposed tile, and which memory all this saves.

    python3 samples/python/05_flash_attention.py --picture attention.png

Attention of one head is softmax(q @ k.T / sqrt(d)) @ v. Position t may look at positions 0 to t only (causal). For T
positions, q @ k.T has T * T scores: stored, they are soon larger than everything else.
"""
import math

import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture


# A program makes M rows of one head's result and goes through the keys N at a time. softmax_step keeps for each row the
# largest score and the sum of exponentials so far. When a larger score comes, what was summed before is too large by a
# factor: multiplying by state.correction mends that. At the end the sum divides.
@jal.kernel
def flash(q, k, v, out, scale, *, M=64, N=128, D=64):
    head, first = tl.program_id(0), tl.program_id(1) * M
    rows = tl.load(q, (head, first, 0), (M, D))
    state = tl.SoftmaxState(M)
    result = tl.zeros((M, D))
    # Keys behind the last row of this block are invisible to all of it: the loop ends before them.
    for j in tl.range(0, tl.minimum(first + M, k.shape[1]), N, stages=2):
        scores = tl.dot(rows, tl.load(k, (head, j, 0), (N, D)).T)
        # Row r sees columns j + c < first + 1 + r; the others become -inf.
        scores = tl.mask(scores, j, first + 1, row_step=1)
        p = tl.softmax_step(scores, state, scale)
        result *= state.correction
        result += tl.dot(p, tl.load(v, (head, j, 0), (N, D)))
    tl.store(out, (head, first, 0), result / state.sum)


# The same in three kernels, with the scores in HBM between them. They also make the scores that the mask hides.
@jal.kernel
def all_scores(q, k, out, scale, *, M=128, D=64):
    head, i, j = tl.program_id(0), tl.program_id(1) * M, tl.program_id(2) * M
    s = tl.dot(tl.load(q, (head, i, 0), (M, D)), tl.load(k, (head, j, 0), (M, D)).T) * scale
    tl.store(out, (head, i, j), tl.mask(s, j, i + 1, row_step=1))


@jal.kernel
def softmax(x, *, ROWS=32, COLUMNS):
    head, i = tl.program_id(0), tl.program_id(1) * ROWS
    tl.store(x, (head, i, 0), tl.softmax(tl.load(x, (head, i, 0), (ROWS, COLUMNS), fill=-math.inf)))


@jal.kernel
def weighted(p, v, out, *, M=128, D=64):
    head, i = tl.program_id(0), tl.program_id(1) * M
    acc = tl.zeros((M, D))
    for j in tl.range(0, v.shape[1], M, stages=2):
        acc += tl.dot(tl.load(p, (head, i, j), (M, M)), tl.load(v, (head, j, 0), (M, D)))
    tl.store(out, (head, i, 0), acc)


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    s = q.astype(np.float64) @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
    s[:, ~np.tri(s.shape[1], dtype=bool)] = -np.inf
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True) @ v


HEADS, D = 4, 64
SCALE = 1 / math.sqrt(D)
rng = np.random.default_rng(0)
properties = jal.default_device().properties
chip = f"modelled, assumed chip (configuration {properties['config_name']})"
print(f"causal attention, {HEADS} heads of {D}, float32; {chip}")
print(f"{'':10}{'flash':^24}{'three kernels':^40}")
print(f"{'positions':>10}{'modelled us':>12}{'HBM MB':>12}{'modelled us':>12}{'HBM MB':>12}{'scores need MB':>16}")

lengths = [256, 500, 1000, 2000]  # ragged on purpose
table = []
for T in lengths:
    host = rng.standard_normal((3, HEADS, T, D), dtype=np.float32)
    q, k, v = (jal.array(x) for x in host)
    out, scores, out3 = jal.empty((HEADS, T, D)), jal.empty((HEADS, T, T)), jal.empty((HEADS, T, D))
    fused = flash.report(lambda c: (HEADS, tl.cdiv(T, c["M"])), q, k, v, out, SCALE)
    blocks = tl.cdiv(T, 128)
    three = [all_scores.report((HEADS, blocks, blocks), q, k, scores, SCALE),
             softmax.report((HEADS, tl.cdiv(T, 32)), scores, COLUMNS=T),
             weighted.report((HEADS, blocks), scores, v, out3)]
    traffic = [sum(r.hbm_read_bytes + r.hbm_write_bytes for r in rs) / 1e6 for rs in ([fused], three)]
    times = [sum(r.device_ns for r in rs) / 1e3 for rs in ([fused], three)]
    print(f"{T:>10}{times[0]:12.1f}{traffic[0]:12.1f}{times[1]:12.1f}{traffic[1]:12.1f}{scores.nbytes / 1e6:16.1f}")
    table.append((times, traffic))
    want = reference(*host)
    errors = [float(np.abs(x.numpy() - want).max()) for x in (out, out3)]
    check(f"largest errors {errors[0]:.1e} and {errors[1]:.1e}", max(errors) < 1e-5)

print(f"\nflash needs {fused.spm_bytes:,} bytes of scratchpad and {fused.acc_bytes:,} of accumulators on each core, "
      "for any number of positions")

# The library has it as well: keys and values as a cache stores them, [positions, heads * d].
cache_k, cache_v = (jal.array(x.transpose(1, 0, 2).reshape(T, HEADS * D)) for x in host[1:])
check("jalapeno.ops.attention agrees", np.abs(jal.ops.attention(q, cache_k, cache_v).numpy() - want).max() < 1e-5)

# Causal means: what comes later does not change what is there. The last 100 keys and values are replaced.
before = out.numpy()
k[:, -100:] = 9.0
v[:, -100:] = 9.0
flash[HEADS, tl.cdiv(T, 64)](q, k, v, out, SCALE)
after = out.numpy()
check("earlier positions do not see later keys", np.array_equal(before[:, :-100], after[:, :-100]))
check("later positions do", not np.array_equal(before[:, -100:], after[:, -100:]))


def draw(plt):
    fig, axes = plt.subplots(1, 2, figsize=(10, 4))
    for n, (ax, label) in enumerate(zip(axes, ("modelled us", "HBM traffic, MB"))):
        for way, name in enumerate(("flash: one kernel", "three kernels, scores in HBM")):
            ax.plot(lengths, [row[n][way] for row in table], "o-", label=name)
        ax.set_xlabel("positions")
        ax.set_ylabel(label)
        ax.grid(True, alpha=0.2)
    axes[0].legend()
    fig.suptitle(f"Causal attention, {HEADS} heads of {D}: {chip}")


picture(draw)

"""Vector add: the first kernel of our own.

What you learn: how a kernel is written in the tile language, how a grid of programs shares the work, what stages do,
and how to see where the modelled time goes.

    python3 samples/python/02_vector_add.py --picture vector_add.png
"""
import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture


# The function runs once, to record instructions. Then the chip runs them, once for each program of the grid.
# Arguments before the * come with each launch; what stands after it is a constant, fixed when the kernel is built.
@jal.kernel
def vector_add(x, y, out, *, BLOCK=4096, STAGES=2):
    # Program p takes blocks p, p + programs, p + 2 * programs, ... so that any number of programs does all the work.
    first, step = tl.program_id(0) * BLOCK, tl.num_programs(0) * BLOCK
    for i in tl.range(first, out.shape[0], step, stages=STAGES):
        # The last block is ragged: outside the array a load reads 0 and a store writes nothing. No mask is needed.
        tl.store(out, i, tl.load(x, i, BLOCK) + tl.load(y, i, BLOCK))


SIZE = 4_000_003  # no multiple of anything
rng = np.random.default_rng(0)
host_x, host_y = rng.standard_normal((2, SIZE), dtype=np.float32)
x, y, out = jal.array(host_x), jal.array(host_y), jal.zeros(SIZE)
properties = x.device.properties
chip = f"modelled, assumed chip (configuration {properties['config_name']})"

# kernel[grid](arguments) launches it and returns at once; .numpy() waits for the result.
vector_add[64](x, y, out)
print(f"{SIZE:,} sums with 64 programs")
check("equal to NumPy, bit for bit", np.array_equal(out.numpy(), host_x + host_y))

# What was built: instructions with the Python line each comes from.
compiled = vector_add.compile(x, y, out)
print(f"\n{compiled.instructions} instructions, {compiled.spm_bytes:,} bytes of scratchpad. Loads, addition and store:")
print("\n".join(line for line in compiled.assembly.splitlines() if any(op in line for op in ("DLD", "DST", "VBIN"))))

# report() launches once and tells what the chip would have done, by its assumed model.
print("\nreport():")
report = vector_add.report(64, x, y, out)
print(report)
check("each byte is read and written once", report.hbm_read_bytes == 8 * SIZE and report.hbm_write_bytes == 4 * SIZE)

# How many programs, and what stages are for. With one stage a program has one buffer for each tile; with two, the loads
# of the next block run meanwhile. This kernel does 1 addition for 12 bytes of traffic: HBM's rate is all it can reach.
counts = [1, 2, 4, 8, 16, 32, 64, 128]
limit_us = 12 * SIZE / properties["hbm_gbytes_per_second"] / 1e3
print(f"\n{chip}; HBM alone needs {limit_us:.1f} us")
print(f"{'programs':>10}" + "".join(f"{f'{s} stage(s), us':>18}" for s in (1, 2, 4)))
modelled = {s: [vector_add.report(n, x, y, out, STAGES=s).device_ns / 1e3 for n in counts] for s in (1, 2, 4)}
for k, n in enumerate(counts):
    print(f"{n:>10}" + "".join(f"{modelled[s][k]:>18,.1f}" for s in modelled))
check("no launch is faster than HBM allows", min(min(t) for t in modelled.values()) >= limit_us)
check("two stages are faster than one on 64 programs", modelled[2][6] < modelled[1][6])
check("the last launch is right too", np.array_equal(out.numpy(), host_x + host_y))


def draw(plt):
    fig, ax = plt.subplots(figsize=(8, 5))
    for s, times in modelled.items():
        ax.loglog(counts, times, "o-", label=f"{s} stage{'s' * (s > 1)}")
    ax.axhline(limit_us, color="black", ls=":", label="HBM's assumed rate")
    ax.axvline(properties["cores"], color="gray", ls="--", lw=1, label=f"{properties['cores']} cores (assumed)")
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.set_xlabel("programs")
    ax.set_ylabel("modelled us")
    ax.set_title(f"Vector add of {SIZE:,} float32\n{chip}")
    ax.grid(True, which="both", alpha=0.2)
    ax.legend()


picture(draw)

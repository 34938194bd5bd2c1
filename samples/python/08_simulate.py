"""Finding mistakes: kernel.simulate, and a race that only comparing finds.

What you learn: how a box outside its array, a value that was never made, and a race between engines are reported with
their Python lines; what the checker covers and what not; how to find two programs that write the same elements.

    python3 samples/python/08_simulate.py --picture simulate.png

simulate() runs a kernel on NumPy arrays on an emulated chip of its own that checks every access (emulator/checker.cpp):
  races   two engines of a core use the same scratchpad or accumulators, one writes, and no semaphore orders them
  uninit  an engine reads scratchpad or accumulators that this program has not written
  oob     a load or store wholly outside its array (partly outside is how ragged ends work, so that is no mistake)
It does not look at: races between programs in HBM, array elements nobody has written, values (NaN, overflow), time.
"""
import re
import shutil
import subprocess
from pathlib import Path

import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture


def expect(name: str, at: str, run) -> None:
    """run() must fail with this error, at the line of this file that ends with `at`."""
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if text.endswith(at))
    try:
        run()
        check("the mistake is found", False)
    except jal.CompileError as e:
        print(f"  {e}")
        check("found, with its line", name == "CompileError" and e.line == line)
    except jal.KernelError as e:
        r = e.record
        print(f"  {e.name} at {r.source_file}:{r.source_line}, program {r.grid_position}\n  {r.detail}")
        check("found, with its line", e.name == name and r.source_line == line)


def launch(kernel, grid: int, *args) -> None:
    """On a stream of its own, to the end. A failure belongs to its stream: others go on."""
    stream = jal.Stream(args[0].device)
    with stream:
        kernel[grid](*args)
    stream.synchronize()


# ---- 1. A box outside its array ----
@jal.kernel
def double(x, y, *, BLOCK=1024):
    i = tl.program_id(0) * BLOCK
    block = tl.load(x, i, BLOCK)  # the box
    tl.store(y, i, block * 2)  # the product and its store


x, y = np.arange(3000, dtype=np.float32), np.zeros(3000, np.float32)
print("1. 4 programs for 3 blocks. The result would be right all the same, so nobody would notice:")
expect("jalErrorOutOfBounds", "# the box", lambda: double.simulate(4, x, y))
double.simulate(3, x, y)
check("3 programs pass all checks, and the NumPy array holds the result", np.array_equal(y, x * 2))


# ---- 2. A value that is not made on every path ----
@jal.kernel
def first_blocks(x, y, limit, *, BLOCK=1024):
    i = tl.program_id(0) * BLOCK
    with tl.when(i < limit):
        block = tl.load(x, i, BLOCK)
    tl.store(y, i, block)  # where i >= limit there is no block


print("\n2. A tile that is loaded under a condition and used outside it. Refused before anything runs:")
expect("CompileError", "there is no block", lambda: first_blocks[3](jal.array(x), jal.empty(3000), 2000))

# ---- 3. A race between engines ----
# Engines of a core run side by side: a load signals a semaphore that the vector engine waits for. The tile language
# places them, so this race cannot be written in it. We take a semaphore, then the load, out of the instructions.
print("\n3. The first kernel with instructions changed by hand:")
text = double.compile(jal.float32, jal.float32).assembly
load = next(s for s in text.splitlines() if " DLD " in s)
semaphore = re.search(r"signal=(S\d+)", load).group(1)
without_wait = text.replace(f" wait={semaphore} ", " ", 1)
changed = [("the semaphore", "jalErrorRace", without_wait.replace(load, load.replace(f" signal={semaphore}", ""))),
           ("the load", "jalErrorUninitialized", without_wait.replace(load + "\n", ""))]
assembler = shutil.which("jalapeno-as") or Path(jal.__file__).parents[2] / "bin" / "jalapeno-as"  # of the build tree
if not Path(assembler).exists():
    print("  jalapeno-as is neither in PATH nor in the build tree: left out")
    changed = []
checked = jal.Device("emu:?hbm=256M&check=races,uninit,oob")  # as simulate() opens it
for what, expected, instructions in changed:
    command = [assembler, "-", "-o", "/dev/stdout"]
    image = subprocess.run(command, input=instructions.encode(), stdout=subprocess.PIPE, check=True).stdout
    module = jal.Module(checked, image)  # kept: its lines are looked up when the failure is reported
    print(f"  without {what}:")
    expect(expected, "# the product and its store",
           lambda: launch(module["double"], 3, jal.array(x, device=checked), jal.array(y, device=checked)))


# ---- 4. A race between programs ----
# Sums of columns. The first kernel gives each program some rows, and all store to the same elements: which one is last
# is chance. (add=True is no remedy: it is not atomic between programs.) In the second a program owns columns.
@jal.kernel
def by_rows(x, total, first, *, SIZE=32, COLUMNS=256):
    tl.store(total, 0, tl.sum(tl.load(x, ((tl.program_id(0) + first) * SIZE, 0), (SIZE, COLUMNS)), axis=0))


@jal.kernel
def by_columns(x, total, first, *, SIZE=32):
    j = (tl.program_id(0) + first) * SIZE
    sums = tl.zeros((1, SIZE))
    for i in tl.range(0, x.shape[0], 64, stages=2):
        sums += tl.sum(tl.load(x, (i, j), (64, SIZE)), axis=0)
    tl.store(total, j, sums)


PROGRAMS = 8
host = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
matrix, want = jal.array(host), host.sum(axis=0, dtype=np.float64)


def writers(kernel) -> np.ndarray:
    """[programs, elements]: who writes what. Each program runs alone, on an array of its own full of NaN."""
    alone = [jal.full(256, float("nan")) for _ in range(PROGRAMS)]
    for p in range(PROGRAMS):
        kernel[1](matrix, alone[p], p)
    return ~np.isnan([a.numpy() for a in alone])


print("\n4. Programs that write the same elements. The checker looks at one program at a time and does not see it:")
total = np.zeros(256, np.float32)
by_rows.simulate(PROGRAMS, host, total, 0)
print(f"  simulate() passes, and {np.sum(np.abs(total - want) > 1e-4)} of 256 sums are wrong")
maps = {k.name: writers(k) for k in (by_rows, by_columns)}
print("  programs that write an element: " + ", ".join(f"{name} {m.sum(axis=0).max()}" for name, m in maps.items()))
check("the mistake is seen", maps["by_rows"].sum(axis=0).max() > 1 and np.all(maps["by_columns"].sum(axis=0) == 1))
by_columns[PROGRAMS](matrix, right := jal.empty(256), 0)
check("and its result is right", np.abs(right.numpy() - want).max() < 1e-4)


def draw(plt):
    _, axes = plt.subplots(2, 1, figsize=(9, 4), sharex=True, layout="tight")
    for ax, (name, written) in zip(axes, maps.items()):
        ax.imshow(written * (1.0 + (written.sum(0) > 1)), "hot_r", aspect="auto", interpolation="none", vmin=0, vmax=2)
        ax.set_title(f"{name}: elements each program writes (black: another one writes it too)", fontsize=10)
        ax.set_ylabel("program")
    axes[-1].set_xlabel("element of the result")


picture(draw)

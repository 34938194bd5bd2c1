"""Streams: what overlaps on the device and what does not, on a timeline.

What you learn: streams that run beside one another, pinned memory, events that order streams and time work.

    python3 samples/python/06_streams.py --picture streams.png

The work: pieces of data are copied in, computed with, and copied out. In one stream all runs in order. With a stream
for each of the three steps, a piece can be copied while another is computed with.
"""
import jalapeno as jal
import numpy as np
from jalapeno import language as tl

from tutorial import check, picture


@jal.kernel
def wave(x, out, *, ROWS=16, COLUMNS=1024, TIMES=12):
    for r in tl.range(tl.program_id(0) * ROWS, out.shape[0], tl.num_programs(0) * ROWS):
        block = tl.load(x, (r, 0), (ROWS, COLUMNS))
        for _ in range(TIMES):  # Python's range: unrolled while recording
            block = tl.sin(block)
        tl.store(out, (r, 0), block)


PIECES, ROWS, COLUMNS = 6, 256, 1024
PROGRAMS = 2  # of 64 cores, so that a kernel takes about as long as a copy and is seen in the picture
device = jal.default_device()
# Pinned memory: the device copies while the program goes on. Other host memory is read before the call returns.
source, result = (jal.zeros((PIECES, ROWS, COLUMNS), pinned=True) for _ in range(2))
source.numpy()[:] = np.random.default_rng(0).standard_normal(source.shape, dtype=np.float32)
x, y = jal.empty(source.shape), jal.empty(source.shape)
wave[PROGRAMS](x[0], y[0])  # built and loaded before anything is timed
device.synchronize()


def run(jobs: list) -> list:
    """jobs: (step, stream, the job to wait for or None, work). Enqueues all of them, then lets them run. Returns
    (step, begin, end, host begin, host end) of each, in us of the device's clock and of this machine's."""
    # Nothing starts before everything is enqueued: all streams wait for a timeline that the host signals.
    gate = jal.Timeline(device)
    streams = list(dict.fromkeys(stream for _, stream, *_ in jobs))
    for s in streams:
        s.wait(gate, 1)
    origin = jal.Event(device, timing=True)
    origin.record(streams[0])
    marks = []
    for step, stream, after, work in jobs:
        if after is not None:
            stream.wait(marks[after][2])
        begin, end = jal.Event(device, timing=True), jal.Event(device, timing=True)
        begin.record(stream)
        with stream:  # the current stream of what is inside
            work()
        end.record(stream)
        marks.append((step, begin, end))
    gate.signal(1)
    device.synchronize()
    spans = []
    for step, begin, end in marks:
        a, b = begin.elapsed(origin), end.elapsed(origin)
        spans.append((step, a.device_ns / 1e3, b.device_ns / 1e3, a.host_ns / 1e3, b.host_ns / 1e3))
    return spans


def pipeline(into: jal.Stream, compute: jal.Stream, out: jal.Stream) -> list:
    """Each step of a piece waits for the event that ends the step before it, and for nothing else."""
    jobs = []
    for p in range(PIECES):
        jobs += [("copy in", into, None, lambda p=p: x[p].copy_from(source[p])),
                 ("kernel", compute, 3 * p, lambda p=p: wave[PROGRAMS](x[p], y[p])),
                 ("copy out", out, 3 * p + 1, lambda p=p: result[p].copy_from(y[p]))]
    return jobs


def overlap(spans: list) -> float:
    """Us in which a kernel and a copy run at once. The event before a job tells when its stream came to it; the job may
    still wait for its engine. So a job runs in the last part of its span, for as long as it took alone."""
    running = [(step == "kernel", end - alone[step], end) for step, _, end, *_ in spans]
    return sum(max(0.0, min(s[2], t[2]) - max(s[1], t[1])) for s in running for t in running if s[0] and not t[0])


def length(spans: list, clock: int = 0) -> float:
    """From the first job's begin to the last one's end: 0 the device's clock, 1 this machine's."""
    return max(s[2 * clock + 2] for s in spans) - min(s[2 * clock + 1] for s in spans)


want = source.numpy().astype(np.float64)
for _ in range(12):
    want = np.sin(want)
a, b, c = (jal.Stream(device) for _ in range(3))
chip = f"modelled, assumed chip (configuration {device.properties['config_name']})"
experiments = {}
for title, streams in (("one stream", (a, a, a)), ("three streams", (a, b, c))):
    result.fill(0)
    device.synchronize()
    experiments[title] = run(pipeline(*streams))
    check(f"{title}: equal to NumPy", np.abs(result.numpy() - want).max() < 1e-5)
experiments["kernels of two streams"] = run([
    ("kernel", s, None, lambda p=p: wave[PROGRAMS](x[p], y[p])) for p, s in enumerate((a, b))])
one, three, kernels = experiments.values()
alone = {step: end - begin for step, begin, end, *_ in one}

print(f"\n{chip}, device clock:")
print("  alone: " + ", ".join(f"{step} {us:.1f} us" for step, us in alone.items()))
for title, spans in experiments.items():
    print(f"  {title:24}{length(spans):8.1f} us, a kernel runs beside a copy for {overlap(spans):6.1f} us of them")
print("this machine (nothing about the chip; the emulator carries out one packet at a time, so nothing overlaps):")
for title, spans in experiments.items():
    print(f"  {title:24}{length(spans, 1) / 1e3:8.1f} ms")

check("in one stream nothing overlaps", length(one) > 0.99 * PIECES * sum(alone.values()) and overlap(one) < 1)
check("with three streams kernels run beside copies", overlap(three) > 2 * alone["kernel"])
# In this version copies of both directions take turns on one copy engine, and launches of different streams do, too.
copies = PIECES * (alone["copy in"] + alone["copy out"])
check(f"but copies do not overlap each other: no less than {copies:.1f} us", length(three) > 0.99 * copies)
check(f"and kernels do not either: two take {length(kernels):.1f} us", length(kernels) > 1.98 * alone["kernel"])


def draw(plt):
    fig, axes = plt.subplots(len(experiments), 1, figsize=(10, 6), sharex=True, height_ratios=[3, 3, 2])
    for ax, (title, spans) in zip(axes, experiments.items()):
        # A lane for each step; the two kernels of the last experiment get one each.
        names = [s[0] if spans is not kernels else f"kernel, stream {n}" for n, s in enumerate(spans)]
        lanes = list(dict.fromkeys(names))
        for name, (step, ready, end, *_) in zip(names, spans):
            at, color = (lanes.index(name) - 0.4, 0.8), f"C{list(alone).index(step)}"
            ax.broken_barh([(ready, end - ready)], at, color=color, alpha=0.2, lw=0)
            ax.broken_barh([(end - alone[step], alone[step])], at, color=color, edgecolor="white")
        ax.set_yticks(range(len(lanes)), lanes)
        ax.invert_yaxis()
        ax.set_title(title, fontsize=10)
    axes[-1].set_xlabel("us of the device's clock; full: it runs; pale: its stream has come to it, its engine is busy")
    fig.suptitle(f"Copies and kernels: {chip}")
    fig.tight_layout()


picture(draw)

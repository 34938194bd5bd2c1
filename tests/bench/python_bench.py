#!/usr/bin/python3
"""What Python costs: launches, kernels of the tile language beside the C++ library's, and copies beside memcpy.

    PYTHONPATH=build/release/python tests/bench/python_bench.py [--quick] [--filter IDS] [--json OUT]

Every figure stands beside a limit or peer measured in the same run, interleaved; medians of this machine's clock. The figures
say what the package costs on this machine, and nothing about the chip.
"""
from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Callable

import numpy as np

import jalapeno as jal
from jalapeno import language as tl


@jal.kernel
def nothing(x):
    pass


@jal.kernel
def matmul(a, w, c, *, BM, BN, BK):
    """c = a @ w.T, as the library's matmul: weights [n, k]."""
    n, m = tl.program_id(0) * BN, tl.program_id(1) * BM
    acc = tl.zeros((BM, BN))
    for k in tl.range(0, a.shape[1], BK, stages=2):
        acc += tl.dot(tl.load(a, (m, k), (BM, BK), dtype=w.dtype), tl.load(w, (n, k), (BN, BK)).T)
    tl.store(c, (m, n), acc)


@jal.kernel
def flash(q, k, v, out, scale, *, D, BQ=128, BK=256):
    """Causal attention of q[heads, t, D] with k, v[t, heads * D]."""
    h, row = tl.program_id(0), tl.program_id(1) * BQ
    query = tl.load(q, (h, row, 0), (BQ, D), dtype=k.dtype)
    state, acc = tl.SoftmaxState(BQ), tl.zeros((BQ, D))

    def attend(acc, j, keys):
        scores = tl.mask(tl.dot(query, tl.load(k, (j, h * D), (keys, D)).T), j, row + 1, 1)
        p = tl.softmax_step(scores, state, scale, dtype=k.dtype)
        acc *= state.correction
        acc += tl.dot(p, tl.load(v, (j, h * D), (keys, D)))

    end = tl.minimum(row + BQ, q.shape[1])
    whole = end // BK * BK  # what is left is often short: smaller blocks waste less on keys that nobody sees
    for j in tl.range(0, whole, BK, stages=2):
        attend(acc, j, BK)
    for j in tl.range(whole, end, BQ, stages=2):
        attend(acc, j, BQ)
    tl.store(out, (h, row, 0), tl.drain(acc, column_scale=tl.reciprocal(state.sum)))


class Table:
    """Rows as scripts/bench prints them."""

    def __init__(self, wanted: Callable[[str], bool]) -> None:
        self.rows: list[dict] = []
        self.wanted = wanted

    def add(self, id: str, value: float, unit: str, peer: str, peer_value: float, ratio: float | None, goal: str, met: bool) -> None:
        self.rows.append({"id": id, "value": value, "unit": unit, "peer_name": peer, "peer_value": peer_value, "ratio": ratio,
                          "goal": goal, "met": met})
        beside = f"{peer} {peer_value:.4g}" + ("" if ratio is None else f", ratio {ratio:.2f}")
        print(f"{id:<34} {value:>9.4g} {unit:<8} {beside:<44} {goal:<12} {'yes' if met else 'no'}", flush=True)


def seconds(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def launches(table: Table, device: jal.Device, rounds: int) -> None:
    """Host cost of enqueueing; the ring is never full."""
    x, stream, batch = jal.zeros(8, device=device), device.stream, 256
    prepared, library = nothing.prepare(1, x), jal.library_kernel(device, "argmax")
    row, index = jal.zeros((1, 8), device=device), jal.zeros(1, np.int32, device)
    launch = prepared.launch

    def each(call: Callable[[], None]) -> float:
        begin = time.perf_counter()
        for _ in range(batch):
            call()
        took = (time.perf_counter() - begin) / batch
        stream.synchronize()
        return took

    ways = {"loop and call of a Python function": lambda: None, "prepared launch": launch, "kernel[grid](x)": lambda: nothing[1](x),
            "library kernel[grid](x, y)": lambda: library[1](row, index)}
    times: dict[str, list[float]] = {n: [] for n in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            times[name].append(each(call))
    median = {n: statistics.median(t) * 1e6 for n, t in times.items()}
    floor = median.pop("loop and call of a Python function")
    for id, name, goal in (("python/prepared_launch", "prepared launch", 1.5), ("python/call", "kernel[grid](x)", 5.0),
                           ("python/library_call", "library kernel[grid](x, y)", 5.0)):
        table.add(id, median[name], "us", "an empty Python call", floor, None, f"<= {goal} us", median[name] <= goal)


def versus(table: Table, name: str, ours: jal.PreparedLaunch, theirs: jal.PreparedLaunch, stream: jal.Stream, work: float,
           unit: str, rounds: int) -> None:
    """The kernels alone: both launches are prepared, and what a call costs has its own rows."""
    both: tuple[list[float], list[float]] = ([], [])

    def timed(launch: jal.PreparedLaunch) -> float:
        def run() -> None:
            launch.launch(stream)
            stream.synchronize()
        return seconds(run)

    timed(ours), timed(theirs)
    for _ in range(rounds):
        both[0].append(timed(ours))
        both[1].append(timed(theirs))
    mine, peer = (work / statistics.median(t) for t in both)
    ratio = statistics.median(p / m for m, p in zip(*both))
    table.add(name, mine, unit, "C++ library kernel", peer, ratio, ">= 0.95", ratio >= 0.95)


def kernels(table: Table, device: jal.Device, rounds: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(1)
    for n in sizes:
        some = rounds if n < 2048 else max(3, rounds // 4)
        for dtype, depth in ((jal.bfloat16, 1024), (jal.float32, 512)):
            if n > 2048 and dtype is jal.float32:
                continue  # minutes on a small machine; the bf16 row says the same
            if not table.wanted(f"python/matmul/{dtype.name}/{n}"):
                continue
            a, w = (jal.array(rng.standard_normal((n, n), np.float32), dtype, device) for _ in range(2))
            c, d = (jal.empty((n, n), device=device) for _ in range(2))
            library = jal.library_kernel(device, f"matmul_{'bf16' if dtype is jal.bfloat16 else 'f32'}")
            grid = (-(-n // 256), -(-n // 256))
            versus(table, f"python/matmul/{dtype.name}/{n}", matmul.prepare(grid, a, w, c, BM=256, BN=256, BK=depth),
                   library.prepare(grid, a, w, d), device.stream, 2 * n**3 / 1e9, "GFLOP/s", some)
            assert np.allclose(c.numpy(), d.numpy(), rtol=1e-3, atol=1e-2)
            del a, w, c, d
    for t in sizes:
        if not table.wanted(f"python/flash/bfloat16/{t}"):
            continue
        heads, size = 8 if t < 2048 else 2, 64
        q = jal.array(rng.standard_normal((heads, t, size), np.float32), device=device)
        k, v = (jal.array(rng.standard_normal((t, heads * size), np.float32), jal.bfloat16, device) for _ in range(2))
        out, want, zero = jal.empty(q.shape, device=device), jal.empty(q.shape, device=device), jal.zeros(1, np.int32, device)
        library = jal.library_kernel(device, f"attention_causal_bf16_d{size}")
        scale = size**-0.5
        versus(table, f"python/flash/bfloat16/{t}", flash.prepare((heads, -(-t // 128)), q, k, v, out, scale, D=size),
               library.prepare((heads, -(-t // 128)), q, k, v, zero, want, 1, scale), device.stream, heads * 4 * size * t * t / 2 / 1e9,
               "GFLOP/s", rounds)
        assert np.allclose(out.numpy(), want.numpy(), atol=2e-2)


def copies(table: Table, device: jal.Device, rounds: int, size: int) -> None:
    source = np.random.default_rng(2).integers(0, 255, size, np.uint8)
    host, there = np.zeros(size, np.uint8), jal.empty(size, np.uint8, device)
    stream = device.stream

    def to_device() -> None:
        there.copy_from(source)
        stream.synchronize()

    to_device()
    np.copyto(host, source)
    ours, memcpy = [], []
    for _ in range(rounds):
        ours.append(seconds(to_device))
        memcpy.append(seconds(lambda: np.copyto(host, source)))
    mine, peer = (size / statistics.median(t) / 1e9 for t in (ours, memcpy))
    ratio = statistics.median(p / m for m, p in zip(ours, memcpy))
    table.add("python/copy_from_numpy", mine, "GB/s", "memcpy (numpy.copyto)", peer, ratio, ">= 0.9", ratio >= 0.9)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--quick", action="store_true", help="smaller sizes, under a minute")
    options.add_argument("--filter", default="", help="only rows whose id contains one of these")
    options.add_argument("--json", help="write the rows to this file")
    o = options.parse_args()
    filters = [f for f in o.filter.split(",") if f]
    device, table = jal.Device("emu:?hbm=4G"), Table(lambda id: not filters or any(f in id for f in filters))
    print("What Python costs on this machine (says nothing about the chip)")
    if table.wanted("python/prepared_launch python/call python/library_call"):
        launches(table, device, 31 if o.quick else 101)
    kernels(table, device, 7 if o.quick else 15, [1024] if o.quick else [1024, 4096])
    if table.wanted("python/copy_from_numpy"):
        copies(table, device, 5 if o.quick else 9, 1 << (28 if o.quick else 30))
    print(f"goals met: {sum(r['met'] for r in table.rows)} of {len(table.rows)}")
    if o.json:
        with open(o.json, "w") as f:
            json.dump(table.rows, f, indent=1)


if __name__ == "__main__":
    main()

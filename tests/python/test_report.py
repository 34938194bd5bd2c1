"""Reports: what a launch and any other work cost on the modelled chip, and how that is told."""
import os

os.environ.setdefault("JALAPENO_CACHE_DIR", "")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import jalapeno as jal  # noqa: E402
from jalapeno import language as tl  # noqa: E402


def report(**changed):
    """Of one program on one of 64 cores that took 1000 ns."""
    given = dict(kernel="k", config="chip-9", assumed=False, device_ns=1000, host_ns=2_500_000, engine_ns={"matrix": 10, "vector": 20, "dma": 30},
                 cores=64, instances=1, instructions=5, hbm_read_bytes=0, hbm_write_bytes=0, energy_joules=2e-6, spm_bytes=64, spm_limit=4096,
                 acc_bytes=0, acc_limit=1024, hbm_gbytes_per_second=100.0, power_watts=1.0)
    return jal.Report(**{**given, **changed})


@pytest.mark.parametrize("changed, busiest, share, bound", [
    ({}, "dma", 0.03, "latency"),
    ({"engine_ns": {"matrix": 0, "vector": 499, "dma": 0}}, "vector", 0.499, "latency"),
    ({"engine_ns": {"matrix": 0, "vector": 500, "dma": 0}}, "vector", 0.5, "vector"),
    ({"engine_ns": {"matrix": 3600, "vector": 0, "dma": 0}, "instances": 4}, "matrix", 0.9, "matrix"),
    ({"engine_ns": {"matrix": 57600, "vector": 0, "dma": 0}, "instances": 1000}, "matrix", 0.9, "matrix"),  # 64 cores share them
    ({"hbm_read_bytes": 50_000, "hbm_write_bytes": 30_000}, "hbm", 0.8, "hbm"),
    ({"engine_ns": {"matrix": 1500, "vector": 0, "dma": 0}}, "matrix", 1.0, "matrix"),
    ({"device_ns": 0, "instances": 0}, "dma", 0.0, "latency"),
])
def test_what_bounds_the_time(changed, busiest, share, bound):
    r = report(**changed)
    assert (r.busiest, r.bound) == (busiest, bound) and r.roofline == pytest.approx(share)


@pytest.mark.parametrize("assumed", [False, True])
@pytest.mark.parametrize("name", ["k", ""])
def test_the_chip_and_this_machine_have_lines_of_their_own(name, assumed):
    lines = str(report(kernel=name, assumed=assumed)).splitlines()
    assert lines[0] == f"{name or 'work'}: 1.0 us modelled on chip-9{' (assumed)' * assumed}"
    [host] = [line for line in lines if "this machine" in line]
    assert "2,500.0 us" in host and "modelled" not in host
    assert not any("2,500.0" in line for line in lines if line != host)
    assert any("bound by latency: dma at 3% of the time" in line for line in lines)
    assert any("scratchpad 64 of 4,096 bytes" in line for line in lines) == bool(name)


def test_report(device):
    @jal.kernel
    def product(a, b, c):
        acc = tl.zeros((64, 64))
        for i in tl.range(0, a.shape[1], 64, stages=2):
            acc += tl.dot(tl.load(a, (0, i), (64, 64)), tl.load(b, (i, 0), (64, 64)))
        tl.store(c, (0, 0), tl.exp(acc * 0.001))

    a, c = jal.ones((64, 256), device=device), jal.zeros((64, 64), device=device)
    r = product.report(1, a, jal.ones((256, 64), device=device), c)
    assert np.allclose(c.numpy(), np.exp(0.256), rtol=1e-6)
    assert r.kernel == "product" and r.instances == 1 and r.assumed and r.device_ns > 0 and r.host_ns > 0 and r.energy_joules > 0
    assert r.hbm_read_bytes == 2 * 64 * 256 * 4 and r.hbm_write_bytes == 64 * 64 * 4
    assert set(r.engine_ns) == {"matrix", "vector", "dma"} and all(0 < ns <= r.device_ns for ns in r.engine_ns.values())
    assert r.spm_bytes >= 2 * 2 * 64 * 64 * 4 and r.acc_bytes == 64 * 64 * 4 and r.spm_bytes <= r.spm_limit and r.instructions > 20
    assert r.limits_ns[r.busiest] == max(r.limits_ns.values()) and 0 < r.roofline <= 1
    assert r.bound == (r.busiest if r.roofline >= 0.5 else "latency")
    text = str(r)
    for part in ("product", r.bound, "matrix", "hbm", "scratchpad", "(assumed)"):
        assert part in text
    # Twice the work is twice the traffic.
    twice = product.report(2, a, jal.ones((256, 64), device=device), c)
    assert twice.hbm_read_bytes == 2 * r.hbm_read_bytes and twice.instances == 2


def test_any_work_can_be_measured():
    a = jal.ones((64, 64))
    jal.ops.matmul(a, a.T)
    r = jal.measure(lambda: (jal.ops.matmul(a, a.T), jal.ops.exp(a)))
    assert r.kernel == "" and r.device_ns > 0 and r.instances >= 2 and r.engine_ns["matrix"] > 0 and r.spm_bytes == 0
    first, *rest = str(r).splitlines()
    assert first.startswith("work: ") and first.endswith("us modelled on assumed-1 (assumed)")
    assert rest[-1].startswith("  this machine took ") and not any("scratchpad" in line for line in rest)
    with jal.Device("emu:?hbm=64M") as other:
        zeros = jal.measure(lambda: jal.ops.exp(jal.zeros(4096, device=other)), other)
        assert zeros.hbm_write_bytes >= 2 * 4096 * 4 and zeros.instances == 1


def test_graphs_are_measured_and_other_streams_wait(device):
    stream = jal.Stream(device)
    x, y = jal.ones(4096, device=device), jal.empty(4096, device=device)
    jal.ops.exp(x, out=y)
    with stream, stream.capture() as graph:
        jal.ops.exp(x, out=y)
        jal.ops.exp(y, out=y)
    with stream:
        r = jal.measure(graph.launch, device)
    assert r.kernel == "" and r.instances == 2 * jal.measure(lambda: jal.ops.exp(x, out=y), device).instances
    assert r.hbm_read_bytes == r.hbm_write_bytes == 2 * 4096 * 4 and r.device_ns > 0 and (r.spm_bytes, r.acc_bytes) == (0, 0)
    assert np.allclose(y.numpy(), np.e, rtol=1e-5)


def test_what_fails_while_measured_is_raised(device):
    with pytest.raises(ZeroDivisionError):
        jal.measure(lambda: 1 // 0, device)

    @jal.kernel
    def stops(x, n):
        tl.device_assert(n < 1)

    with jal.Device("emu:?hbm=64M") as own:
        with pytest.raises(jal.KernelError):
            stops.report(1, jal.ones(8, device=own), 2)
        with pytest.raises(jal.KernelError):
            stream = jal.Stream(own)
            with stream:
                jal.measure(lambda: stops[1](jal.ones(8, device=own), 2), own)


def test_nothing_measured_is_nothing(device):
    r = jal.measure(lambda: None, device)
    assert (r.instances, r.instructions, r.hbm_read_bytes, r.roofline, r.bound) == (0, 0, 0, 0.0, "latency")

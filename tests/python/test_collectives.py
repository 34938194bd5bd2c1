"""Collectives from Python: values, graphs, errors, and ranks in processes."""
import os
import subprocess
import sys

import numpy as np
import pytest

import jalapeno as jal


@pytest.fixture
def world():
    devices = [jal.Device("emu:?hbm=64M&threads=1") for _ in range(3)]
    comms = jal.Communicator.all(devices, deadline=20)
    yield comms
    for c in comms:
        c.destroy()
    for d in devices:
        d.close()


def arrays(world, values):
    return [jal.array(v, device=c.device) for c, v in zip(world, values)]


def test_every_operation_gives_what_numpy_gives(world):
    generator = np.random.default_rng(1)
    n = len(world)
    for count in (1, 600, 50_000):
        values = generator.integers(-50, 50, (n, n * count)).astype(np.int32)
        x = arrays(world, values)
        out = [jal.empty(n * count, np.int32, c.device) for c in world]
        for c, a, o in zip(world, x, out):
            c.all_reduce(a, o, op="max")
        assert all(np.array_equal(o.numpy(), values.max(0)) for o in out)
        part = [jal.empty(count, np.int32, c.device) for c in world]
        for c, a, p in zip(world, x, part):
            c.reduce_scatter(a, p)
        assert all(np.array_equal(p.numpy(), values.sum(0)[r * count:][:count]) for r, p in enumerate(part))
        for c, o, p in zip(world, out, part):
            c.all_gather(p, o)
        assert all(np.array_equal(o.numpy(), values.sum(0)) for o in out)
        for c, a, o in zip(world, x, out):
            c.all_to_all(a, o)
        for r, o in enumerate(out):
            assert np.array_equal(o.numpy(), np.concatenate([v[r * count:][:count] for v in values]))
        with jal.group():
            for r, (c, a, o) in enumerate(zip(world, x, out)):
                c.send(a, (r + 1) % n)
                c.receive(o, (r - 1) % n)
        assert all(np.array_equal(o.numpy(), values[(r - 1) % n]) for r, o in enumerate(out))
        for c, a in zip(world, x):
            c.broadcast(a, root=1)
        assert all(np.array_equal(a.numpy(), values[1]) for a in x)
        for c, a in zip(world, x):
            c.reduce(a, root=2, op="prod")
        assert np.array_equal(x[2].numpy(), values[1] ** n)


def test_bfloat16_is_rounded_once(world):
    values = np.random.default_rng(2).standard_normal((3, 4000), dtype=np.float32)
    x = [jal.array(v, jal.bfloat16, device=c.device) for c, v in zip(world, values)]
    exact = [a.numpy().astype(np.float32) if a.numpy().dtype != np.uint16 else (a.numpy().astype(np.uint32) << 16).view(np.float32)
             for a in x]
    for c, a in zip(world, x):
        c.all_reduce(a)
    expected = jal.array((exact[0] + exact[1]) + exact[2], jal.bfloat16, device=world[0].device).numpy()
    for a in x:
        assert np.array_equal(a.numpy().view(np.uint16), expected.view(np.uint16))


def test_graphs_replay(world):
    x = arrays(world, [np.full(10, r + 1.0, np.float32) for r in range(3)])
    streams = [jal.Stream(c.device) for c in world]
    graphs = []
    for c, a, s in zip(world, x, streams):
        with s, s.capture() as graph:
            c.all_reduce(a)
        graphs.append(graph)
    for _ in range(3):
        for g, s in zip(graphs, streams):
            g.graph.launch(s) if hasattr(g, "graph") else g.launch(s)
    for a, s in zip(x, streams):
        with s:
            assert np.array_equal(a.numpy(), np.full(10, 54.0, np.float32))


def test_errors_say_what_was_expected(world):
    c = world[0]
    a = jal.zeros(6, np.float32, c.device)
    with pytest.raises(ValueError, match="expected sum, prod"):
        c.all_reduce(a, op="xor")
    with pytest.raises(jal.InvalidValueError, match="out has 5 elements, expected 6"):
        c.all_reduce(a, jal.zeros(5, np.float32, c.device))
    with pytest.raises(jal.InvalidValueError, match="different element types"):
        c.all_reduce(a, jal.zeros(6, np.int32, c.device))
    with pytest.raises(jal.InvalidValueError, match="not contiguous"):
        c.all_reduce(jal.zeros((4, 4), np.float32, c.device)[:, :2])
    with pytest.raises(jal.InvalidValueError, match="multiple of 3 ranks"):
        c.all_to_all(jal.zeros(7, np.float32, c.device), jal.zeros(7, np.float32, c.device))
    with pytest.raises(jal.InvalidValueError, match="peer 3 of 3"):
        c.send(a, 3)
    with pytest.raises(jal.DeviceError, match="another device"):
        c.all_reduce(jal.zeros(6, np.float32, world[1].device))
    with pytest.raises(ValueError, match="id of 3 bytes"):
        jal.Communicator(c.device, 2, b"abc", 0)
    assert c.error is None and c.rank == 0 and c.ranks == 3 and "one-shot" == c.algorithm("all_reduce", 8)


def test_a_mismatch_is_told_on_both_sides_and_the_rest_goes_on(world):
    x = arrays(world, [np.zeros(8, np.float32)] * 3)
    world[0].all_reduce(x[0])
    world[1].all_reduce(x[1], op="max")
    world[2].all_reduce(x[2])
    for c, a in zip(world, x):
        with pytest.raises(jal.PeerError, match="all_reduce of 8 f32 (sum|max)"):
            a.numpy()
        assert c.error["code"] == "jalErrorCollectiveMismatch"
    with pytest.raises(jal.PeerError, match="has failed"):
        world[0].barrier()
    for c in world:
        c.device.stream.reset()
    with pytest.raises(jal.InvalidHandleError):
        world[2].destroy()
        world[2].barrier()


def test_processes_meet_through_the_environment():
    program = """
import os, numpy as np, jalapeno as jal
device = jal.Device("emu:?hbm=64M&threads=1")
comm = jal.Communicator.from_launcher(device, timeout=60)
x = jal.array(np.arange(5, dtype=np.float32) + comm.rank, device=device)
comm.all_reduce(x)
assert np.array_equal(x.numpy(), 2 * np.arange(5) + 1), x.numpy()
assert jal.launcher_rank() == (comm.rank, 2, 0)
comm.finalize()
"""
    port = str(20000 + os.getpid() % 20000)
    processes = [subprocess.Popen([sys.executable, "-c", program],
                                  env={**os.environ, "RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
                 for r in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]


def test_communicators_are_made_in_groups_and_exceptions_forget_what_was_collected():
    devices = [jal.Device("emu:?hbm=64M&threads=1") for _ in range(4)]
    world = jal.Communicator.all(devices)
    with jal.group():
        halves = [c.split(r % 2) for r, c in enumerate(world)]
    assert [(c.rank, c.ranks) for c in halves] == [(0, 2), (0, 2), (1, 2), (1, 2)]
    x = jal.array(np.ones(8, np.float32), device=devices[0])
    with pytest.raises(ZeroDivisionError), jal.group():
        world[0].all_reduce(x)
        1 / 0
    devices[0].synchronize()  # nobody waits for the other ranks

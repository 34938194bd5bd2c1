"""Devices, streams, events, timelines, graphs, modules, kernels: what they do, how they fail, and what happens to them when the
device closes, the process forks, Ctrl-C is pressed or Python ends."""
import asyncio
import gc
import os
import pickle
import signal
import threading
import time
import weakref

import numpy as np
import pytest

import jalapeno as jal
from jalapeno import language as tl


@jal.kernel
def double(x, y):
    i = tl.program_id(0) * 1024
    tl.store(y, i, tl.load(x, i, 1024) * 2.0)


@jal.kernel
def trap_at_2(x):
    tl.device_assert(tl.program_id(0) < 2, 77)
    tl.store(x, 0, tl.load(x, 0, 16))


@jal.kernel
def copy_row(x, y, row):
    tl.store(y, (row, 0), tl.load(x, (row, 0), (1, 16)))


@pytest.fixture
def gate(device, stream):
    """A timeline the stream waits for: what is enqueued behind it does not run before gate.signal(1)."""
    t = jal.Timeline(device)
    stream.wait(t, 1)
    yield t
    t.signal(1)


def ones(device, n=1024):
    return jal.ones(n, device=device)


def in_use(device):
    """Bytes of device memory that something holds."""
    gc.collect()
    device.synchronize()
    device.trim()
    free, total = device.memory_info()
    return total - free


def failed(stream, x):
    """Makes the stream fail."""
    trap_at_2[4](x, stream=stream)
    with pytest.raises(jal.KernelError) as caught:
        stream.synchronize()
    return caught.value


# ---- Devices ----
def test_device_opens_and_closes():
    with jal.Device("emu:?hbm=64M") as d:
        assert d.uri == "emu:?hbm=64M" and not d.closed
        assert d.properties["emulated"] and d.properties["hbm_bytes"] == 64 << 20 and d.properties["queues"] > 1
        free, total = d.memory_info()
        assert 0 < free < total == 64 << 20
        assert d.telemetry()["healthy"]
        assert repr(d) == "<jalapeno.Device emu:?hbm=64M>"
    assert d.closed
    d.close()
    assert repr(d) == "<jalapeno.Device emu:?hbm=64M, closed>"
    assert d.properties["hbm_bytes"] == 64 << 20  # what it was is still known


def test_devices_names_the_uri(python):
    assert python("import jalapeno; print(jalapeno.devices())", JAL_DEVICE_URI="emu:?hbm=64M;emu:?hbm=128M") == (
        0, "['emu:?hbm=64M', 'emu:?hbm=128M']\n", "")


def test_default_device_is_opened_once_also_from_threads(python):
    code, out, err = python("""
        import threading, jalapeno as jal
        seen = []
        threads = [threading.Thread(target=lambda: seen.append(jal.default_device())) for _ in range(8)]
        [t.start() for t in threads], [t.join() for t in threads]
        print(len({id(d) for d in seen}), seen[0].uri)
        seen[0].close()
        print(jal.default_device().closed, jal.default_device() is seen[0])
        """, JAL_DEVICE_URI="emu:?hbm=64M")
    assert (code, out, err) == (0, "1 emu:?hbm=64M\nFalse False\n", "")


@pytest.mark.parametrize("uri, kind, text", [
    ("nonsense", jal.InvalidValueError, 'device URI "nonsense": expected emu:, emu:/path/to.sock or vfio:DDDD:BB:DD.F'),
    ("emu:?hbm=lots", jal.InvalidValueError, 'size "lots": expected a number with K, M, G or T, as in 512M'),
    ("emu:?check=all", jal.InvalidValueError, 'check "all": expected races, uninit or oob'),
    ("emu:/chip.sock?lower=0", jal.InvalidValueError, '"?lower=0" is for an embedded emulator (emu:?...); give the options'),
    ("emu:/nonexistent.sock", jal.DeviceError, "emulator socket /nonexistent.sock: No such file or directory"),
])
def test_device_that_does_not_open(refuses, uri, kind, text):
    with refuses(kind, text):
        jal.Device(uri)


def test_everything_of_a_closed_device_is_refused(refuses):
    d = jal.Device("emu:?hbm=64M")
    x, s, e, t = ones(d), jal.Stream(d), jal.Event(d), jal.Timeline(d)
    own = d.stream
    module = jal.Module(d, double.compile(x, x, device=d).image)
    k = module["double"]
    prepared = k.prepare(1, x, x)
    with s, s.capture() as graph:
        double[1](x, x)
    e.record(s)
    s.synchronize()
    d.close()
    was_closed = "device emu:?hbm=64M was closed"
    for call in (d.memory_info, d.telemetry, d.synchronize, d.reset, d.trim, lambda: d.stream, lambda: jal.Stream(d),
                 lambda: jal.Event(d), lambda: jal.Timeline(d), lambda: jal.Module(d, b""), lambda: jal.library_kernel(d, "add"),
                 lambda: jal.current_stream(d), lambda: ones(d), x.numpy, lambda: x + x, lambda: x.fill(1), lambda: x.pointer,
                 lambda: x.copy_from(np.ones(1024)), lambda: k[1](x, x), lambda: k[1](x, x, stream=s), lambda: double[1](x, x),
                 e.record, prepared.launch, graph.launch, x.__dlpack__):
        with refuses(jal.InvalidHandleError, was_closed):
            call()
    freed = "is already freed"
    for call in (s.synchronize, s.query, s.position, s.reset, lambda: s.error, lambda: s.call(print), lambda: s.wait(e),
                 lambda: s.wait(t, 1), lambda: s.signal(t, 1), lambda: s.notify(1), s.capture().__enter__, own.synchronize,
                 own.query,
                 lambda: e.record(s), e.query, e.synchronize, lambda: e.elapsed(e), lambda: t.value, lambda: t.signal(1),
                 lambda: t.wait(1), lambda: module["double"], lambda: module.kernels, lambda: graph.launch(s),
                 lambda: prepared.launch(s)):
        with refuses(jal.InvalidHandleError, freed):
            call()
    x.free()
    assert k.name == "double" and [a[0] for a in k.arguments] == ["x", "y"]


def test_objects_keep_their_device(refuses):
    """A device that nobody names lives as long as its objects."""
    x = jal.ones(8, device=jal.Device("emu:?hbm=64M"))
    gc.collect()
    assert (x + 1).numpy().tolist() == [2.0] * 8
    s = x.device.stream
    del x
    gc.collect()
    s.synchronize()
    assert s.device.uri == "emu:?hbm=64M"


def test_reprs_name_the_object(device, stream):
    x = ones(device)
    k = jal.library_kernel(device, "add")
    module = jal.Module(device, double.compile(x, x, device=device).image)
    with stream, stream.capture() as graph:
        double[1](x, x)
    uri = device.uri
    assert repr(stream) == f"<jalapeno.Stream of {uri}>"
    assert repr(k) == "<jalapeno.Kernel add>"
    assert repr(x) == f"<jalapeno.Array float32 (1024,), device of {uri}>"
    for thing, name in ((jal.Event(device), "Event"), (jal.Timeline(device), "Timeline"), (graph, "Graph"), (module, "Module"),
                        (k.prepare(1, *[x.reshape(1, 1024)] * 3), "PreparedLaunch"), (x.memory, "Memory")):
        assert repr(thing).startswith(f"<jalapeno.{name}") and "object at 0x" not in repr(thing), repr(thing)


@pytest.mark.parametrize("make", [lambda d: d, jal.Stream, jal.Event, jal.Timeline, lambda d: jal.library_kernel(d, "add"), ones],
                         ids=["device", "stream", "event", "timeline", "kernel", "array"])
def test_nothing_can_be_pickled(device, make):
    with pytest.raises(TypeError, match="cannot pickle|pickle its .numpy"):
        pickle.dumps(make(device))


# ---- Streams ----
def test_stream_runs_in_order_and_counts(device, stream):
    x, y = ones(device), ones(device)
    before = stream.position()[0]
    for _ in range(5):
        double[1](x, y, stream=stream)
        double[1](y, x, stream=stream)
    stream.synchronize()
    assert x.numpy()[0] == 2**10
    assert stream.position() == (before + 10, before + 10)
    assert stream.query() is True and stream.error is None


def test_streams_have_priorities(device, refuses):
    for priority in range(4):
        s = jal.Stream(device, priority=priority, ring_entries=16)
        s.synchronize()
    with refuses(jal.InvalidValueError, "stream priority 4, expected 0 to 3"):
        jal.Stream(device, priority=4)
    with refuses(jal.InvalidValueError, "ring_entries 5, expected a power of two from 16 to 65536"):
        jal.Stream(device, ring_entries=5)


def test_queues_run_out_and_come_back(refuses):
    with jal.Device("emu:?hbm=64M") as d:
        streams = []
        with refuses(jal.BusyError, f"all {d.properties['queues']} hardware queues are in use"):
            while True:
                streams.append(jal.Stream(d))
        assert len(streams) > 100
        del streams
        gc.collect()
        jal.Stream(d).synchronize()


def test_current_stream_nests(device):
    a, b = jal.Stream(device), jal.Stream(device)
    own = jal.current_stream(device)
    assert own is device.stream
    with a as entered:
        assert entered is a and jal.current_stream(device) is a
        with b, a:
            assert jal.current_stream(device) is a
        with pytest.raises(ZeroDivisionError), b:
            1 / 0
        assert jal.current_stream(device) is a
    assert jal.current_stream(device) is own


def test_current_stream_is_of_its_device(device, stream):
    with jal.Device("emu:?hbm=64M") as other, stream:
        assert jal.current_stream(other) is other.stream
        assert jal.ones(4, device=other).numpy().tolist() == [1.0] * 4


def test_current_stream_is_of_its_thread_and_task(device):
    a, b = jal.Stream(device), jal.Stream(device)
    seen = {}
    with a:
        thread = threading.Thread(target=lambda: seen.update(thread=jal.current_stream(device)))
        thread.start(), thread.join()

    async def task(name, s):
        with s:
            await asyncio.sleep(0.01)
            seen[name] = jal.current_stream(device)

    async def both():
        await asyncio.gather(task("a", a), task("b", b))
        seen["outside"] = jal.current_stream(device)
    asyncio.run(both())
    assert seen == {"thread": device.stream, "a": a, "b": b, "outside": device.stream}


def test_leaving_a_stream_that_was_not_entered(stream, refuses):
    with refuses(jal.IllegalStateError, "leave a with block that was entered"):
        stream.__exit__(None, None, None)


def test_reset_discards_what_has_not_run(device, stream):
    x, t = ones(device), jal.Timeline(device)
    stream.wait(t, 1)
    for _ in range(3):
        double[1](x, x, stream=stream)
    assert stream.reset() == 4
    stream.synchronize()
    assert x.numpy()[0] == 1


@pytest.mark.parametrize("fill", ["launch", "record", "signal", "call", "fill", "graph", "prepared"])
def test_a_full_ring_waits_without_the_gil(device, fill):
    """The thread that makes room runs while this one waits for it."""
    s, t, x, event = jal.Stream(device, ring_entries=16), jal.Timeline(device), ones(device), jal.Event(device)
    double[1](x, x, stream=s)
    prepared = jal.library_kernel(device, "add").prepare(1, *[x.reshape(1, 1024)] * 3)
    with s, s.capture() as graph:
        double[1](x, x)
    s.wait(t, 1)
    opener = threading.Timer(0.2, lambda: t.signal(1))
    opener.start()
    enqueue = {"launch": lambda k: double[1](x, x, stream=s), "record": lambda k: event.record(s),
               "signal": lambda k: s.signal(t, k + 2),
               "call": lambda k: s.call(lambda: None), "fill": lambda k: jal._core.fill(x, 0, s),
               "graph": lambda k: graph.launch(s),
               "prepared": lambda k: prepared.launch(s)}[fill]
    for k in range(40):
        enqueue(k)
    s.synchronize()
    opener.join()
    assert t.value >= 1


# ---- Timeouts and interrupts ----
def waits(device, stream, gate):
    event = jal.Event(device)
    event.record(stream)
    return {"stream": stream.synchronize, "device": device.synchronize, "event": event.synchronize,
            "timeline": lambda timeout=None: gate.wait(1, timeout)}


WAITS = ["stream", "device", "event", "timeline"]


@pytest.mark.parametrize("what", WAITS)
def test_timeout_and_the_work_goes_on(device, stream, gate, what):
    x = ones(device)
    double[1](x, x, stream=stream)
    wait = waits(device, stream, gate)[what]
    with pytest.raises(TimeoutError) as caught:
        wait(timeout=0.02)
    assert isinstance(caught.value, jal.WaitTimeout) and caught.value.name == "jalErrorWaitTimeout" and caught.value.code == 2002
    assert f"{what}: " in str(caught.value) or what == "device"
    with pytest.raises(jal.WaitTimeout):
        wait(timeout=0)
    assert stream.query() is False
    gate.signal(1)
    wait(timeout=10)
    stream.synchronize(timeout=float("inf"))
    assert x.numpy()[0] == 2


@pytest.mark.parametrize("timeout, text",
                         [(-1, "timeout is -1.000000 s, expected at least 0"), (float("nan"), "timeout is nan s")])
@pytest.mark.parametrize("what", WAITS)
def test_bad_timeouts(device, stream, gate, refuses, what, timeout, text):
    with refuses(jal.InvalidValueError, text):
        waits(device, stream, gate)[what](timeout=timeout)


@pytest.mark.parametrize("what", [*WAITS, "numpy", "copy to the host"])
def test_ctrl_c_interrupts(device, stream, gate, what):
    x, there = ones(device), jal.from_dlpack(np.zeros(1024, np.float32))
    wait = {**waits(device, stream, gate), "numpy": x.numpy, "copy to the host": lambda: jal._core.copy(there, x, stream)}[what]
    # It is the alarm that ends the wait, long before this.
    rescue = threading.Timer(10, lambda: gate.signal(1))
    rescue.start()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt), stream:
            wait()
    finally:
        signal.signal(signal.SIGALRM, before)
        rescue.cancel()
    assert gate.value == 0, "the wait was not interrupted"
    gate.signal(1)
    stream.synchronize()


@pytest.mark.parametrize("what", WAITS)
def test_waiting_releases_the_gil(device, stream, gate, what):
    """Only a thread of Python ends the wait."""
    count = []

    def progress():
        for k in range(1000):
            count.append(k)
        gate.signal(1)
    wait = waits(device, stream, gate)[what]
    threading.Timer(0.05, progress).start()
    wait(timeout=20)
    assert len(count) == 1000


def test_closing_with_work_that_cannot_run(python):
    """A call or a notification behind a wait that never ends does not hold up close()."""
    code, out, err = python("""
        import os, jalapeno as jal
        for enqueue in (lambda s: s.call(lambda: None), lambda s: s.notify(os.eventfd(0)), lambda s: None):
            d = jal.Device("emu:?hbm=64M")
            s, t = jal.Stream(d), jal.Timeline(d)
            s.wait(t, 1)
            enqueue(s)
            d.close()
        print("closed")
        """, timeout=20)
    assert (code, out, err) == (0, "closed\n", "")


# ---- Calls ----
def test_calls_run_in_order_on_another_thread(device, stream):
    seen, x = [], ones(device)
    for k in range(3):
        double[1](x, x, stream=stream)
        stream.call(lambda k=k: seen.append((k, threading.get_ident())))
    stream.synchronize()
    assert [k for k, _ in seen] == [0, 1, 2]
    assert threading.get_ident() not in {thread for _, thread in seen}


def test_exception_in_a_call_is_reported_and_the_stream_goes_on(device, stream, monkeypatch):
    import sys
    told, x = [], ones(device)
    monkeypatch.setattr(sys, "unraisablehook", lambda u: told.append((u.exc_type, str(u.exc_value))))
    stream.call(lambda: 1 / 0)
    double[1](x, x, stream=stream)
    stream.synchronize()
    assert told == [(ZeroDivisionError, "division by zero")]
    assert x.numpy()[0] == 2


def test_calls_drop_their_function(stream):
    class Function:
        def __call__(self):
            pass
    f = Function()
    gone = weakref.ref(f)
    with pytest.raises(TypeError):
        stream.call(5)
    stream.call(f)
    stream.synchronize()
    del f
    deadline = time.monotonic() + 10
    while gone() is not None and time.monotonic() < deadline:
        time.sleep(0.001)
    assert gone() is None


# ---- Events and timelines ----
def test_event_orders_two_streams(device, stream, gate):
    x, other, event = ones(device), jal.Stream(device), jal.Event(device)
    double[1](x, x, stream=stream)
    event.record(stream)
    other.wait(event)
    double[1](x, x, stream=other)
    assert event.query() is False and other.query() is False
    gate.signal(1)
    other.synchronize()
    assert event.query() is True
    assert x.numpy()[0] == 4


def test_event_never_recorded_is_no_wait(device, stream):
    event = jal.Event(device)
    assert event.query() is True
    stream.wait(event)
    stream.synchronize()
    event.synchronize()


def test_event_records_the_current_stream(device, stream, gate):
    event = jal.Event(device)
    with stream:
        event.record()
    assert event.query() is False


def test_elapsed(device, stream, refuses):
    x, begin, end = ones(device), jal.Event(device, timing=True), jal.Event(device, timing=True)
    with refuses(jal.IllegalStateError, "never recorded"):
        end.elapsed(begin)
    begin.record(stream)
    double[1](x, x, stream=stream)
    end.record(stream)
    end.synchronize()
    span = end.elapsed(begin)
    assert span.device_ns > 0 and span.host_ns > 0
    assert repr(span) == f"<jalapeno.Elapsed device_ns={span.device_ns:f} host_ns={span.host_ns:f}>"
    plain = jal.Event(device)
    plain.record(stream)
    plain.synchronize()
    with refuses(jal.IllegalStateError, "end event: created without JAL_EVENT_TIMING"):
        plain.elapsed(begin)


def test_timeline_between_host_and_device(device, stream):
    t = jal.Timeline(device, initial=5)
    assert t.value == 5 and t.device is device
    t.wait(5)
    stream.wait(t, 6)
    stream.signal(t, 7)
    assert t.value == 5
    t.signal(6)
    t.wait(7, timeout=10)
    t.signal(3)
    assert t.value == 7


def test_failure_reaches_who_waits_for_it(device, stream, refuses):
    x, t, event, other = ones(device), jal.Timeline(device), jal.Event(device), jal.Stream(device)
    gate = jal.Timeline(device)
    stream.wait(gate, 1)  # a stream that has failed already would refuse the signal
    trap_at_2[4](x, stream=stream)
    stream.signal(t, 1)
    event.record(stream)
    gate.signal(1)
    with refuses(jal.DependencyError, "timeline"):
        t.wait(1)
    with pytest.raises(jal.KernelError, match="TRAP 77"):
        event.synchronize()
    other.wait(event)
    with pytest.raises(jal.DependencyError) as caught:
        other.synchronize()
    assert caught.value.record.root_code == 710
    other.reset()


# ---- Graphs ----
def test_graph_records_and_replays(device, stream):
    x = ones(device)
    with stream, stream.capture() as graph:
        double[1](x, x)
        x.copy_from(x + 1.0)
    assert x.numpy()[0] == 1, "recording runs nothing"
    assert graph.nodes == 3
    for _ in range(3):
        graph.launch(stream)
    stream.synchronize()
    assert x.numpy()[0] == 15
    with stream:
        graph.launch()
        assert x.numpy()[0] == 31


def test_graph_set_arguments(device, stream, refuses):
    x, y = ones(device), ones(device)
    k = jal.Module(device, double.compile(x, x, device=device).image)["double"]
    with stream, stream.capture() as graph:
        k[1](x, x)
    graph.set_arguments(0, k, y, x)
    y.fill(21)
    device.stream.synchronize()  # where both arrays were filled: nothing orders that stream before the other
    graph.launch(stream)
    stream.synchronize()
    assert x.numpy()[0] == 42
    with refuses(jal.InvalidValueError, "node 5, the graph has 1"):
        graph.set_arguments(5, k, x, x)
    with refuses(jal.InvalidValueError, "kernel double takes 2 arguments (x, y), got 1"):
        graph.set_arguments(0, k, x)


def test_graph_keeps_its_arrays_alive(device, stream):
    x, out = ones(device), ones(device)
    with stream, stream.capture() as graph:
        double[1](x, out)
    del x
    gc.collect()
    clutter = [jal.full(1024, 9.0, device=device) for _ in range(50)]
    graph.launch(stream)
    stream.synchronize()
    assert out.numpy()[0] == 2
    assert clutter[0].numpy()[0] == 9


def test_a_dropped_graph_gives_its_arrays_back():
    with jal.Device("emu:?hbm=256M") as d, jal.Stream(d) as s:
        double[1](ones(d), ones(d))
        baseline = in_use(d)
        x = jal.empty(1 << 24, device=d)
        with s.capture() as graph:
            double[1](x, x)
        del x
        assert in_use(d) >= baseline + (64 << 20)
        graph.launch()
        del graph
        assert in_use(d) == baseline


def test_graph_keeps_its_timelines_alive(device, stream):
    t = jal.Timeline(device)
    with stream.capture() as graph:
        stream.signal(t, 7)
    del t
    gc.collect()
    others = [jal.Timeline(device) for _ in range(64)]
    graph.launch(stream)
    stream.synchronize()
    assert {t.value for t in others} == {0}


def test_new_arguments_replace_the_old_ones():
    with jal.Device("emu:?hbm=256M") as d, jal.Stream(d) as s:
        x = ones(d)
        k = jal.Module(d, double.compile(x, x, device=d).image)["double"]
        with s.capture() as graph:
            k[1](x, x)
        baseline = in_use(d)
        first = jal.empty(1 << 24, device=d)
        graph.set_arguments(0, k, first, x)
        del first
        assert in_use(d) >= baseline + (64 << 20)
        graph.set_arguments(0, k, x, x)
        assert in_use(d) == baseline


def test_exception_in_a_capture_leaves_the_stream_usable(device, stream, refuses):
    x = ones(device)
    with pytest.raises(ZeroDivisionError), stream, stream.capture() as graph:
        double[1](x, x)
        1 / 0
    with refuses(jal.IllegalStateError, 'the graph has no recording; use "with stream.capture() as graph:" and leave the block first'):
        graph.launch()
    double[1](x, x, stream=stream)
    stream.synchronize()
    assert x.numpy()[0] == 2


def test_what_cannot_be_captured(device, stream, refuses):
    x = ones(device)
    for name, call in {"jalStreamSynchronize": x.numpy, "jalLaunchHostFunc": lambda: stream.call(print),
                       "jalMemcpyAsync": lambda: x.copy_from(np.ones(1024, np.float32)),
                       "jalStreamNotifyEventfd": lambda: stream.notify(1)}.items():
        with refuses(jal.CaptureError, f"{name} cannot be captured"), stream, stream.capture():
            call()
        stream.synchronize()
    with refuses(jal.IllegalStateError, "the stream is capturing already"), stream.capture(), stream.capture():
        pass
    with refuses(jal.IllegalStateError, "the graph has no recording"), stream.capture() as graph:
        graph.launch()
    stream.synchronize()
    with pytest.raises(TypeError, match="No constructor defined"):
        jal.Graph()


# ---- Failing kernels ----
def test_error_carries_the_record(device, stream):
    e = failed(stream, ones(device, 16))
    r = e.record
    assert (e.code, e.name) == (710, "jalErrorAssert")
    assert (r.code, r.root_code, r.name, r.operation, r.kernel, r.detail) == (710, 710, "jalErrorAssert", "launch", "trap_at_2",
                                                                              "TRAP 77")
    assert r.source_file == "test_runtime.py" and r.source_line == trap_at_2.function.__code__.co_firstlineno + 2
    assert r.grid_position in ((2, 0, 0), (3, 0, 0)) and isinstance(r.instruction,
                                                                    int) and 0 <= r.core < device.properties["cores"]
    assert r.call_site == f"{__file__}:{failed.__code__.co_firstlineno + 2}"
    assert r.sequence == 0 and r.address == 0 and r.access == ""
    lines = str(e).splitlines()
    assert lines[0].startswith("jalErrorAssert: kernel trap_at_2 (test_runtime.py:") and "TRAP 77" in lines[0]
    assert lines[1] == (f"  kernel trap_at_2 at test_runtime.py:{r.source_line}, instruction {r.instruction}, "
                        f"grid position {r.grid_position}, core {r.core}")
    assert lines[2] == f"  launched at {r.call_site}"
    assert stream.error.detail == "TRAP 77"


def test_failed_stream_stays_failed_until_reset_and_others_go_on(device, stream):
    x, other = ones(device), jal.Stream(device)
    failed(stream, x)
    for call in (stream.query, stream.synchronize, lambda: double[1](x, x, stream=stream),
                 lambda: jal.Event(device).record(stream)):
        with pytest.raises(jal.KernelError, match="TRAP 77"):
            call()
    with other:
        assert (ones(device) * 3).numpy()[0] == 3
    stream.reset()
    assert stream.error is None
    double[1](x, x, stream=stream)
    stream.synchronize()


def test_device_reset_clears_every_stream(device):
    with jal.Device("emu:?hbm=64M") as d:
        s, x = jal.Stream(d), jal.ones(16, device=d)
        failed(s, x)
        d.reset()
        s.synchronize()
        assert x.numpy()[0] == 1


def test_error_from_another_process_keeps_its_text(device, stream):
    e = failed(stream, ones(device, 16))
    copy = pickle.loads(pickle.dumps(e))
    assert type(copy) is jal.KernelError and str(copy) == str(e) and copy.code == 710 and copy.record is None


def test_freed_memory_names_the_address_and_the_allocation(device, stream):
    rows = 65536
    x, y, neighbour = jal.zeros((rows, 16), device=device), jal.zeros((rows, 16), device=device), jal.zeros(1 << 18,
                                                                                                            device=device)
    with stream, stream.capture() as graph:
        copy_row[1](x, y, 1000)
    device.synchronize()
    address = x.pointer + 1000 * 64
    x.free()
    device.trim()
    graph.launch(stream)
    with pytest.raises(jal.KernelError) as caught:
        stream.synchronize()
    r = caught.value.record
    assert r.name == "jalErrorIllegalAddress" and r.address == address and r.access == "read" and r.bytes > 0
    assert r.allocation != 0 and r.allocation_bytes > 0 and r.allocation + r.allocation_offset == address
    assert f"  read of {r.bytes} bytes at {address:#x}" in str(caught.value).splitlines()
    assert (f"  nearest allocation: {r.allocation_bytes} bytes at {r.allocation:#x}, the address is at {r.allocation_offset:+d}"
            in str(caught.value).splitlines())
    assert neighbour.numpy().sum() == 0


def test_checks_find_accesses_outside(refuses):
    with jal.Device("emu:?hbm=64M&check=oob") as d:
        x = jal.zeros((4, 16), device=d)
        copy_row[1](x, x, 9)
        with pytest.raises(jal.KernelError, match="jalErrorOutOfBounds") as caught:
            x.numpy()
        assert caught.value.record.kernel == "copy_row" and caught.value.code == 2016


def test_injected_memory_error(refuses):
    with jal.Device("emu:?hbm=64M&fault=ecc_uncorrectable@launch:1") as d:
        x = jal.ones(1024, device=d)
        double[1](x, x)
        with pytest.raises(jal.KernelError, match="jalErrorEccUncorrectable") as caught:
            d.stream.synchronize()
        assert caught.value.code == 214 and caught.value.record.code == 214
        assert d.telemetry()["ecc_uncorrected"] == 1
        d.stream.reset()
        double[1](x, x)
        d.stream.synchronize()


def test_fault_in_the_environment(python):
    code, out, err = python("""
        import jalapeno as jal
        try:
            jal.ops.add(jal.ones(8), 1.0).numpy()
        except jal.KernelError as e:
            print(e.name)
        """, JAL_EMU_FAULT="ecc_uncorrectable@launch:1", JAL_DEVICE_URI="emu:?hbm=64M")
    assert (code, out, err) == (0, "jalErrorEccUncorrectable\n", "")


# ---- Modules and kernels ----
@pytest.fixture(scope="module")
def image(device):
    return double.compile(jal.float32, jal.float32, device=device).image


def test_module_from_bytes_and_file(device, image, tmp_path, refuses):
    path = tmp_path / "double.jal"
    path.write_bytes(image)
    for source in (image, path, str(path)):
        module = jal.Module(device, source)
        assert [k.name for k in module.kernels] == ["double"] and module.device is device
        k = module["double"]
        assert k.arguments == [("x", "tensor", "float32", 1), ("y", "tensor", "float32", 1)]
        assert k.instructions > 0 and k.spm_bytes >= 4096 and k.device is device
        x = ones(device)
        k[1](x, x)
        assert x.numpy()[0] == 2
        with refuses(jal.NotFoundError, 'has no kernel "nope"; it has double'):
            module["nope"]
    with refuses(jal.NotFoundError, "module /nonexistent: cannot be read"):
        jal.Module(device, "/nonexistent")
    with refuses(TypeError, "expected str, bytes or os.PathLike object, not int"):
        jal.Module(device, 5)


def test_kernel_outlives_its_module(device, image):
    k = jal.Module(device, image)["double"]
    gc.collect()
    x = ones(device)
    k[1](x, x)
    assert x.numpy()[0] == 2


def test_damaged_modules(device, image, refuses):
    with refuses(jal.ImageError, "module, byte 0: the ELF header of 64 bytes leaves the file of 0"):
        jal.Module(device, b"")
    with refuses(jal.ImageError, "module, byte 0: not an ELF file"):
        jal.Module(device, b"no module" * 20)
    with refuses(jal.ImageError, "leaves the file of"):
        jal.Module(device, image[:-8])
    refused = 0
    for at in range(0, len(image), 7):
        bad = bytearray(image)
        bad[at] ^= 0x40
        try:
            jal.Module(device, bytes(bad))
        except jal.ImageError as e:
            assert str(e).startswith(("jalErrorInvalidImage: module, byte", "jalErrorInvalidImage: kernel")), e
            refused += 1
    assert refused > 20


def test_module_of_another_isa_version(device, image, refuses):
    at = image.index(b"JALAPENO") + 12
    version = jal._core.tile.isa_version
    assert image[at:at + 4] == version.to_bytes(4, "little")
    for other in (version + (1 << 16), version + 1, 0):
        bad = image[:at] + other.to_bytes(4, "little") + image[at + 4:]
        with refuses(jal.ImageError, f"instruction set {other >> 16}.{other & 0xFFFF}, this library runs {version >> 16}.{version & 0xFFFF}"):
            jal.Module(device, bad)


GRIDS = [(float("nan"), "grid: is nan, expected an int"), (-1, "grid: is -1, expected 1 to 3 extents of at least 1"),
         (0, "grid: is 0, expected 1 to 3 extents of at least 1"), (1.5, "grid: is 1.5, expected an int"),
         ((1, -2), "grid: is (1, -2), expected 1 to 3"), ((1, 2, 3, 4), "grid: is (1, 2, 3, 4), expected 1 to 3"),
         ((), "grid: is (), expected 1 to 3"), ("a", "grid: is 'a', expected an int"), (None, "grid: is None, expected an int"),
         (2**32, "grid: is 4294967296, expected 1 to 3"), (2**70, "grid: is 1180591620717411303424, which 64 bits do not hold")]


@pytest.mark.parametrize("grid, text", GRIDS, ids=lambda v: str(v)[:12])
def test_bad_grids(device, refuses, grid, text):
    x = jal.ones((1, 8), device=device)
    with refuses(jal.InvalidValueError, text):
        jal.library_kernel(device, "add")[grid](x, x, x)


@pytest.mark.parametrize("grid", [1, (1,), [2, 1], (1, 1, 1), np.int64(3)])
def test_good_grids(device, grid):
    x = jal.ones((1, 8), device=device)
    jal.library_kernel(device, "add")[grid](x, x, x)
    assert x.numpy().tolist() == [[2.0] * 8]


def test_kernel_arguments_are_checked(device, stream, refuses):
    k, norm = jal.library_kernel(device, "add"), jal.library_kernel(device, "rmsnorm")
    x = jal.ones((1, 8), device=device)
    freed = jal.ones((1, 8), device=device)
    freed.free()
    other = jal.Device("emu:?hbm=64M")
    for arguments, kind, text in (
            ((x,), jal.InvalidValueError, "kernel add takes 3 arguments (a, b, out), got 1"),
            ((x, x, np.ones((1, 8))), jal.InvalidValueError,
             "kernel add, argument 2 (out): is numpy.ndarray, expected a jalapeno.Array; "
                                                             "jalapeno.array(x) copies it to the device"),
            ((x, 1.0, x), jal.InvalidValueError, "kernel add, argument 1 (b): is float, expected a jalapeno.Array"),
            ((x[0], x, x), jal.InvalidValueError, "kernel add, argument 0 (a): has 1 dimensions, expected 2"),
            ((x.astype("int8"), x, x), jal.InvalidValueError, "kernel add, argument 0 (a): is int8, expected float32"),
            ((x, x, x.astype("uint8")), jal.InvalidValueError,
             "kernel add, argument 2 (out): is uint8, which kernels do not take"),
            ((x[:, ::2], x, x), jal.InvalidValueError,
             "kernel add, argument 0 (a): is not contiguous along its last axis (strides (32, 8)); "
                                                       "use .contiguous()"),
            ((jal.from_dlpack(np.ones((1, 8), np.float32)), x, x), jal.InvalidValueError,
             "kernel add, argument 0 (a): is an array in host memory the device does not reach; move it with .to(device)"),
            ((freed, x, x), jal.InvalidHandleError, "the array's memory was freed"),
            ((x, x, jal.ones((1, 8), device=other)), jal.DeviceError,
             "kernel add, argument 2 (out): the memory belongs to another device")):
        with refuses(kind, text):
            k[1](*arguments)
    with refuses(jal.InvalidValueError, "kernel rmsnorm, argument 3 (eps): is str, expected a float"):
        norm[1](x, x[0], x, "a")
    with refuses(jal.InvalidValueError, "launch: unknown keyword strem, expected stream"):
        k[1](x, x, x, strem=stream)
    with refuses(jal.InvalidValueError, "launch: stream is int, expected a jalapeno.Stream"):
        k[1](x, x, x, stream=5)
    with refuses(jal.DeviceError, "kernel add is loaded on another device than the stream's"):
        k[1](x, x, x, stream=jal.Stream(other))
    with refuses(jal.NotFoundError, 'the kernel library has no "nope"; docs/kernels.md lists its names'):
        jal.library_kernel(device, "nope")
    k[1](x, x, x)
    assert x.numpy()[0, 0] == 2


def test_integer_arguments_have_limits(device, refuses):
    x = jal.ones((4, 16), device=device)
    copy_row[1](x, x, 1)
    copy_row[1](x, x, np.int64(1))
    with refuses(jal.InvalidValueError, "which 64 bits do not hold"):
        copy_row[1](x, x, 2**63)


def test_prepared_launch(device, stream, refuses):
    x = jal.ones((1, 8), device=device)
    k = jal.library_kernel(device, "add")
    prepared = k.prepare(1, x, x, x)
    device.synchronize()
    for _ in range(3):
        prepared.launch(stream)
    stream.synchronize()
    assert x.numpy()[0, 0] == 8
    with refuses(jal.InvalidValueError, "kernel add takes 3 arguments (a, b, out), got 0"):
        k.prepare(1)


def test_prepared_launch_keeps_its_arrays():
    with jal.Device("emu:?hbm=256M") as d:
        k = jal.library_kernel(d, "add")
        baseline = in_use(d)
        x = jal.ones((1, 1 << 24), device=d)
        prepared = k.prepare(8, x, x, x)
        del x
        assert in_use(d) >= baseline + (64 << 20)
        prepared.launch()
        del prepared
        assert in_use(d) == baseline


# ---- Lifetime, threads, fork, exit ----
def test_work_keeps_memory_that_nobody_names(device, stream, gate):
    """A hundred results, whose operands are gone before they run."""
    results = []
    with stream:
        for k in range(100):
            x = jal.full(1024, float(k), device=device)
            y = jal.empty(1024, device=device)
            double[1](x, y)
            results.append(y)
            del x
    clutter = [jal.full(1024, -1.0, device=device) for _ in range(50)]
    gate.signal(1)
    stream.synchronize()
    assert [float(y.numpy()[0]) for y in results] == [2.0 * k for k in range(100)]
    assert len(clutter) == 50


def test_many_threads_share_a_stream(device, stream):
    errors = []

    def work(value):
        try:
            for _ in range(20):
                with stream:
                    x = jal.full(1024, float(value), device=device)
                    double[1](x, x)
                stream.synchronize()
                assert x.numpy()[0] == 2 * value
        except BaseException as e:  # noqa: BLE001
            errors.append(e)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert errors == []


def test_forked_child_is_told_and_the_parent_goes_on(python):
    code, out, err = python("""
        import gc, os, sys, jalapeno as jal
        from jalapeno.ops import add
        d = jal.Device("emu:?hbm=64M")
        x, s, t, e = jal.ones(8, device=d), jal.Stream(d), jal.Timeline(d), jal.Event(d)
        add(x, 1.0, out=x)
        pid = os.fork()
        if pid == 0:
            for call in (x.numpy, d.memory_info, d.synchronize, s.synchronize, s.query, lambda: t.value, e.query, jal.Device,
                         lambda: jal.Stream(d), lambda: jal.ones(8, device=d), lambda: add(x, 1.0), lambda: jal.Module(d, b"")):
                try:
                    call()
                except jal.ForkedError as error:
                    assert "the process forked after it used libjalapeno; open devices in the child only after exec" in str(error)
                else:
                    sys.exit("no error")
            repr([x, s, t, e, d])
            del x, s, t, e, d
            gc.collect()
            sys.exit(0)
        print(os.waitpid(pid, 0)[1], x.numpy()[0])
        """, ASAN_OPTIONS="detect_leaks=0")  # the leak check stops threads, which a forked child does not have
    assert (code, out, err) == (0, "0 2.0\n", "")


@pytest.mark.parametrize("work", ["s.wait(t, 1); s.call(lambda: print('never'))", "s.call(lambda: time.sleep(0.3))",
                                  "[s.call(lambda: time.sleep(0.001)) for _ in range(200)]",
                                  "[add(x, 1.0) for _ in range(200)]", "[g.launch(s) for _ in range(50)]; x = [s]; x.append(x)",
                                  "threading.Thread(target=lambda: t.wait(1, 1e9), daemon=True).start()"])
def test_python_ends_cleanly_with_work_in_flight(python, work):
    code, out, err = python(f"""
        import threading, time, jalapeno as jal
        from jalapeno.ops import add
        d = jal.default_device()
        x, s, t = jal.ones(4096), jal.Stream(d), jal.Timeline(d)
        with s, s.capture() as g:
            add(x, 1.0, out=x)
        with s:
            {work}
        print("end")
        """, JAL_DEVICE_URI="emu:?hbm=64M")
    assert (code, out, err) == (0, "end\n", "")


# ---- asyncio ----
def test_await_a_stream_and_an_event(device, stream, gate):
    x, order, event = ones(device), [], jal.Event(device)
    double[1](x, x, stream=stream)
    event.record(stream)

    async def wait(what, name):
        await what
        order.append(name)

    async def main():
        tasks = [asyncio.create_task(wait(stream, "stream")), asyncio.create_task(wait(event, "event"))]
        await asyncio.sleep(0.05)
        order.append("loop runs")
        gate.signal(1)
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        await event
        await stream
    asyncio.run(main())
    assert order[0] == "loop runs" and set(order) == {"loop runs", "stream", "event"}
    assert x.numpy()[0] == 2


def test_two_tasks_with_a_stream_each(device):
    async def task(value):
        with jal.Stream(device) as s:
            x = jal.full(1024, float(value), device=device)
            for _ in range(5):
                double[1](x, x)
                await s
            return float(x.numpy()[0])

    async def main():
        return await asyncio.gather(task(1), task(3))
    assert asyncio.run(main()) == [32.0, 96.0]


@pytest.mark.parametrize("what", ["stream", "event"])
def test_await_raises_what_the_work_failed_with(device, stream, what):
    t, x, event = jal.Timeline(device), ones(device), jal.Event(device)
    stream.wait(t, 1)
    trap_at_2[4](x, stream=stream)
    event.record(stream)

    async def main():
        async def wait():
            await {"stream": stream, "event": event}[what]
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.02)
        t.signal(1)
        await asyncio.wait_for(task, 20)
    with pytest.raises(jal.KernelError, match="TRAP 77"):
        asyncio.run(main())

    async def again():
        await stream
    with pytest.raises(jal.KernelError, match="TRAP 77"):
        asyncio.run(again())


def test_cancelled_await_leaves_the_work_alone(device, stream, gate):
    x = ones(device)
    double[1](x, x, stream=stream)

    async def main():
        task = asyncio.create_task(jal.aio.finished(stream))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        descriptors = len(os.listdir("/proc/self/fd"))
        gate.signal(1)
        await asyncio.wait_for(stream, 20)
        await asyncio.sleep(0.01)
        assert len(os.listdir("/proc/self/fd")) < descriptors, "the eventfd is closed"
    asyncio.run(main())
    assert x.numpy()[0] == 2

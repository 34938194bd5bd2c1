"""@jalapeno.kernel: launches, specialisations, both caches, reports and simulation."""
import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref

os.environ.setdefault("JALAPENO_CACHE_DIR", "")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import jalapeno as jal  # noqa: E402
from jalapeno import language as tl  # noqa: E402

jit = sys.modules["jalapeno.kernel"]
F, I = jal.float32, jal.int32
FACTOR = 3.0
PACKAGE = os.path.dirname(os.path.dirname(jal.__file__))


@pytest.fixture(scope="module")
def device():
    with jal.Device("emu:?hbm=256M") as d:
        yield d


@pytest.fixture
def recorded(monkeypatch):
    """The names of the kernels that were recorded, one for each time."""
    names = []
    real = jit.JitKernel._record
    monkeypatch.setattr(jit.JitKernel, "_record", lambda self, *rest: (names.append(self.name), real(self, *rest))[1])
    return names


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JALAPENO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scale(x, y, factor, *, BLOCK=64, OFFSET=0):
    i = tl.program_id(0) * BLOCK
    tl.store(y, i, tl.load(x, i, BLOCK) * factor + OFFSET)


def numbers(n, device, dtype=F):
    return jal.array(np.arange(n).astype(np.float32), device=device).astype(dtype)


# ---- Launching ----
def test_grids_and_constants(device):
    k = jal.kernel(scale)
    x, y = numbers(100, device), jal.zeros(100, device=device)
    for grid in (2, (2,), [2, 1], (2, 1, 1), np.int64(2), lambda c: 128 // c["BLOCK"], lambda c: (128 // c["BLOCK"], 1)):
        y.fill(0)
        k[grid](x, y, 2.0)
        assert y.tolist() == [2 * n for n in range(100)]
    k[lambda c: tl.cdiv(100, c["BLOCK"])](x, y, 3, BLOCK=32, OFFSET=0.5)
    assert y.tolist() == [3 * n + 0.5 for n in range(100)]
    with jal.Stream(device) as stream:
        k[2](x, y, -1.0, stream=stream)
        stream.synchronize()
    assert y[99].item() == -99


@pytest.mark.parametrize("grid", [0, -1, (1, 0), (1, 1, 1, 1), (), float("nan"), 1.5, "2", None, 2**32])
def test_impossible_grids(device, grid):
    x = numbers(8, device)
    for first in (True, False):  # before and after the kernel is known
        with pytest.raises(jal.InvalidValueError, match="grid: is "):
            k = jal.kernel(scale) if first else k  # noqa: F821
            k[grid](x, x, 1.0)
        k[1](x, x, 1.0)


def test_arguments_that_do_not_fit(device):
    k, x = jal.kernel(scale), numbers(64, device)
    k[1](x, x, 1.0)
    for args, constants, said in [
            ((x, x), {}, r"kernel scale takes 3 arguments \(x, y, factor\), got 2"),
            ((x, x, 1.0, 2), {}, "got 4"),
            ((x, np.zeros(64, np.float32), 1.0), {}, r"argument y: is a NumPy array; jalapeno.array\(x\) copies it"),
            ((x, [1.0], 1.0), {}, "argument y: is a list, expected an Array, an int or a float"),
            ((x, x, None), {}, "argument factor: is a NoneType"),
            ((x, x, 1 + 2j), {}, "argument factor: is a complex"),
            ((x.astype(jal.int64), x, 1.0), {}, "argument x: is int64, which kernels do not take"),
            ((jal.zeros((1, 1, 1, 1, 4), device=device), x, 1.0), {}, "argument x: has 5 dimensions, expected at most 4"),
            ((x, x, 1.0), {"SIZE": 3}, "kernel scale has no constant SIZE; it has BLOCK, OFFSET"),
            ((x, x, 1.0), {"BLOCK": [64]}, "constant BLOCK is a list, expected something hashable")]:
        with pytest.raises(TypeError, match=said):
            k[1](*args, **constants)
    with pytest.raises(TypeError, match=r"scale\(...\): a kernel needs a grid: scale\[grid\]\(...\)"):
        k(x, x, 1.0)
    with pytest.raises(TypeError, match="kernel needs: constant SIZE is not given"):
        @jal.kernel
        def needs(x, *, SIZE):
            pass
        needs[1](x)
    with pytest.raises(jal.InvalidValueError, match="64 bits do not hold"):
        k[1](x, x, 2**70)


def test_foreign_freed_and_strided_arrays(device):
    k, x, y = jal.kernel(scale), numbers(64, device), jal.zeros(64, device=device)
    k[1](x, y, 1.0)
    with jal.Device("emu:?hbm=64M") as other:
        there = numbers(64, other)
        with pytest.raises(jal.Error, match="device"):
            k[1](x, there, 1.0)
        k[1](there, jal.zeros(64, device=other), 1.0)
    freed = numbers(64, device)
    freed.free()
    with pytest.raises(jal.InvalidHandleError):
        k[1](freed, y, 1.0)
    wide = numbers(128, device)
    with pytest.raises(jal.InvalidValueError):  # the last dimension of a kernel's arrays is dense
        k[1](wide[::2], y, 1.0)
    k[1](wide[32:96], y, 1.0)
    assert y.tolist() == list(range(32, 96))


def test_a_closed_device_is_forgotten():
    k = jal.kernel(scale)
    for n in range(3):
        with jal.Device("emu:?hbm=64M") as d:
            x, y = numbers(8, d), jal.zeros(8, device=d)
            k[1](x, y, float(n))
            k[1](x, y, float(n))
            assert y[7].item() == 7 * n
            assert len({id(v.device) for v in k._loaded.values()}) == 1
            del x, y


@pytest.mark.parametrize("make, said", [
    (lambda: jal.kernel(5), "of a int, expected a Python function"), (lambda: jal.kernel(print), "of a builtin_function_or_method"),
    (lambda: jal.kernel(Holder().method), "of a method, expected a Python function")])
def test_what_is_no_function(make, said):
    with pytest.raises(TypeError, match=said):
        make()


class Holder:
    def method(self, x):
        pass


def _definitions():
    def generator(x):
        yield x

    async def coroutine(x):
        pass

    def variable(x, *rest):
        pass

    def keywords(x, **rest):
        pass

    def default(x, n=3):
        pass

    def taken(x, *, stream):
        pass

    return [(generator, "a generator or async function"), (coroutine, "a generator or async function"),
            (variable, r"parameter \*rest; a kernel's parameters are named one by one"), (keywords, r"parameter \*\*rest"),
            (default, r"parameter n has a default; arguments of a launch are all given. Constants stand after \*"),
            (taken, r"parameter stream; that name is taken by launches \(stream, device, check\)")]


@pytest.mark.parametrize("function, said", _definitions())
def test_functions_that_are_no_kernels(function, said):
    with pytest.raises(jal.CompileError, match=said) as e:
        jal.kernel(function)
    assert (e.value.file, e.value.line) == (__file__, function.__code__.co_firstlineno)


def test_lambdas_static_methods_and_names(device):
    x, y = numbers(8, device), jal.zeros(8, device=device)
    jal.kernel(lambda x, y: tl.store(y, 0, tl.load(x, 0, 8) + 1))[1](x, y)
    assert y[7].item() == 8

    class Kernels:
        @staticmethod
        @jal.kernel(name="another")
        def k(x, y):
            """Its words."""
            tl.store(y, 0, tl.load(x, 0, 8) + 2)

    Kernels.k[1](x, y)
    assert y[7].item() == 9 and Kernels.k.name == "another" and Kernels.k.__doc__ == "Its words." and Kernels.k.__name__ == "k"


def test_kernels_in_kernels(device):
    inner, x = jal.kernel(scale), numbers(8, device)

    def called(x):
        inner(x, x, 1.0)  # a call

    def launched(x):
        inner[1](x, x, 1.0)  # a launch

    for f, word, comment in ((called, "called", "a call"), (launched, "launched", "a launch")):
        with pytest.raises(jal.CompileError, match=f"kernel scale is {word} inside another kernel; call a plain Python function") as e:
            jal.kernel(f)[1](x)
        with open(__file__) as text:
            assert e.value.line == 1 + next(n for n, t in enumerate(text) if t.rstrip().endswith(f"# {comment}"))
    inner[1](x, x, 2.0)  # the failure leaves nothing behind
    assert x[7].item() == 14


def test_errors_of_the_kernel_itself_pass_through(device):
    def k(x):
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        jal.kernel(k)[1](numbers(8, device))
    with pytest.raises(jal.CompileError, match="works only inside"):
        tl.zeros(8)


# ---- Specialisations in memory ----
def test_one_recording_for_each_combination_of_types(device, recorded):
    k, x, y = jal.kernel(scale), numbers(64, device), jal.zeros(64, device=device)
    h, i = x.astype(jal.bfloat16), y.astype(jal.int32)
    recorded.clear()
    for _ in range(3):
        k[1](x, y, 2.0)
        k[1](x, y, np.float32(2))
        k[1](x, y, np.float64(2), BLOCK=64)
    assert len(recorded) == 1
    for args, constants, total in [((x, y, 2), {}, 2), ((x, y, True), {}, 2), ((x, y, np.int8(2)), {}, 2), ((h, y, 2.0), {}, 3),
                                   ((x, i, 2.0), {}, 4), ((x, y, 2.0), {"BLOCK": 32}, 5), ((x, y, 2.0), {"OFFSET": 0.0}, 6),
                                   ((x, y, 2.0), {"OFFSET": -0.0}, 7), ((x, y, 2.0), {"OFFSET": False}, 8), ((x, y, 2.0), {}, 8),
                                   ((h, h, 2), {}, 9), ((x, y, 2.0), {}, 9)]:
        for _ in range(2):
            k[1](*args, **constants)
        assert len(recorded) == total, (args, constants)
    assert y[63].item() == 126 and h[63].item() == 4 * 63 and i[63].item() == 126


def test_ranks_make_specialisations(device, recorded):
    @jal.kernel
    def k(x, y):
        tl.store(y, 0, tl.full(1, x.ndim))

    y = jal.zeros(1, device=device)
    for shape, ndim in (((), 1), ((3,), 1), ((3, 1), 2), ((1, 1, 3), 3), ((3,), 1)):
        k[1](jal.zeros(shape, device=device), y)
        assert y.item() == ndim
    assert len(recorded) == 3


def test_equal_constants_of_other_types_are_other_constants(device):
    @jal.kernel
    def k(y, *, C):
        tl.store(y, 0, tl.full(1, {int: 1, float: 2, bool: 3}[type(C[0])]))

    y = jal.zeros(1, device=device)
    @jal.kernel
    def plain(y, *, C):
        tl.store(y, 0, tl.full(1, {int: 1, float: 2, bool: 3}[type(C)]))

    for value, want in ((1, 1), (1.0, 2), (True, 3), (1, 1), (True, 3)):
        k[1](y, C=(value,))
        assert y.item() == want
        plain[1](y, C=value)
        assert y.item() == want


def test_globals_are_read_once(device, monkeypatch):
    def k(y):
        tl.store(y, 0, tl.full(1, FACTOR))

    y = jal.zeros(1, device=device)
    first = jal.kernel(k)
    first[1](y)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    first[1](y)
    assert y.item() == 3  # as the class says: what changes belongs into arguments or constants
    jal.kernel(k)[1](y)
    assert y.item() == 5


def test_threads_that_build_the_same_kernel(recorded):
    with jal.Device("emu:?hbm=64M") as d:
        k, x = jal.kernel(scale), numbers(64, d)
        outputs, failures = [jal.zeros(64, device=d) for _ in range(6)], []
        start = threading.Barrier(6)

        def work(n):
            try:
                start.wait()
                for i in range(20):
                    k[1](x, outputs[n], float(n), OFFSET=i % 3)
            except BaseException as e:  # noqa: B902 - reported below
                failures.append(e)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert not failures and len(recorded) == 3
        assert [y[63].item() for y in outputs] == [63 * n + 1 for n in range(6)]
        del x, outputs


# ---- compile(), prepare(), report(), simulate() ----
def test_compile_takes_types_or_examples(device):
    k = jal.kernel(scale)
    x = numbers(8, device)
    c = k.compile(F, (F, 1), float, device=device)
    assert c is k.compile(x, jal.zeros(3, device=device), 2.5, device=device) and c is not k.compile(F, F, int, device=device)
    with pytest.raises(jal.CompileError, match="tl.store to y with 1 coordinates, it has 2 dimensions"):
        k.compile(F, (F, 2), float, device=device)
    assert c.name == "scale" and not c.from_disk and c.spm_bytes >= 256 and c.acc_bytes == 0 and c.instructions > 5
    for args, said in (((F, F), "takes 3 arguments"), ((F, F, "f"), "argument factor: is a str"), ((F, jal.int64, float), "int64 of 1 dim"),
                       ((F, (F, 5), float), "float32 of 5 dimensions"), ((F, [1], 1), "argument y: is a list")):
        with pytest.raises(TypeError, match=said):
            k.compile(*args, device=device)


def test_assembly_has_the_lines_of_this_file(device):
    text = jal.kernel(scale).compile(F, F, float, device=device).assembly
    first = scale.__code__.co_firstlineno
    lines = {name: [ln for ln in text.splitlines() if name in ln] for name in ("SPR", "DLD", "DST", "VBIN")}
    assert f"line={first + 1}" in lines["SPR"][0]
    for name in ("DLD", "DST", "VBIN"):
        assert lines[name] and all(f"line={first + 2}" in ln for ln in lines[name]), text
    assert os.path.basename(__file__) in text


def test_prepare_keeps_its_arrays(device):
    k = jal.kernel(scale)
    x, y = numbers(64, device), jal.zeros(64, device=device)
    ready = k.prepare(lambda c: 64 // c["BLOCK"], x, y, 2.0, BLOCK=32)
    watched = weakref.ref(x.memory)
    del x
    gc.collect()
    jal.full(64, -1, F, device)  # would take the memory
    for _ in range(3):
        ready.launch()
    assert y[63].item() == 126
    del ready
    gc.collect()
    device.synchronize()
    assert watched() is None


def test_simulate():
    k = jal.kernel(scale)
    x, y = np.arange(100, dtype=np.float32), np.zeros(100, np.float32)
    frozen = np.arange(100, dtype=np.float32)
    frozen.flags.writeable = False
    r = k.simulate(lambda c: -(-100 // c["BLOCK"]), frozen, y, 2.0, BLOCK=32)
    assert np.array_equal(y, 2 * x) and r.instances == 4
    bits, out = jal.bfloat16.encode(x), jal.bfloat16.encode(np.zeros(100))
    k.simulate(2, bits, out[::1], 2.0, check="")
    assert np.array_equal(jal.bfloat16.decode(out), jal.bfloat16.decode(jal.bfloat16.encode(2 * x)))
    wide = np.zeros((100, 2), np.float32)
    k.simulate(2, x, wide[:, 0], 3, check="races")
    assert np.array_equal(wide[:, 0], 3 * x) and not wide[:, 1].any()


def test_simulate_refuses(device):
    k, x = jal.kernel(scale), np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="check 'leaks', expected some of races,uninit,oob"):
        k.simulate(1, x, x, 1.0, check="races,leaks")
    with pytest.raises(TypeError, match="simulate: argument x is an Array; it takes NumPy arrays"):
        k.simulate(1, numbers(8, device), x, 1.0)
    with pytest.raises(TypeError, match="simulate: argument y is float64, which kernels do not take; use x.astype"):
        k.simulate(1, x, np.zeros(8), 1.0)
    with pytest.raises(TypeError, match="takes 3 arguments"):
        k.simulate(1, x, x)

    @jal.kernel
    def nothing(n):
        tl.device_assert(n > 3)

    assert nothing.simulate(1, 4).instances == 1
    with pytest.raises(jal.KernelError):
        nothing.simulate(1, 3)


def outside(x, y):
    t = tl.load(x, 0, 16)
    tl.store(y, 100, t)  # outside


def uninitialised(x, y):
    n = tl.item(tl.load(x, 0, 1).to(tl.int32))
    with tl.when(n > 5):
        t = tl.load(x, 0, 16)
    for i in tl.range(n):
        u = tl.load(x, i, 16)
    tl.store(y, 0, tl.zeros(16))
    tl.store(y, 0, u * 2)  # uninitialised


@pytest.mark.parametrize("function", [outside, uninitialised], ids=lambda f: f.__name__)
def test_simulate_names_the_line(function):
    # A race between engines cannot be written in this language: the builder orders every access to scratchpad.
    x, y = np.zeros(16, np.float32), np.zeros(16, np.float32)
    with pytest.raises(jal.KernelError) as e:
        jal.kernel(function).simulate(1, x, y)
    with open(__file__) as text:
        line = 1 + next(n for n, t in enumerate(text) if t.rstrip().endswith(f"# {function.__name__}"))
    assert e.value.record.source_line == line and e.value.record.source_file == os.path.basename(__file__)
    assert f":{line}" in str(e.value)


# ---- The cache on disk ----
def files(cache):
    return sorted(cache.glob("*")) if cache.exists() else []


def test_kept_on_disk(device, cache, recorded):
    c = jal.kernel(scale).compile(F, F, float, device=device)
    assert not c.from_disk and len(files(cache)) == 1 and len(recorded) == 1
    again = jal.kernel(scale).compile(F, F, float, device=device)
    assert again.from_disk and len(recorded) == 1
    assert (again.image, again.name, again.spm_bytes, again.acc_bytes, again.instructions) == (
        c.image, c.name, c.spm_bytes, c.acc_bytes, c.instructions)
    x, y = numbers(64, device), jal.zeros(64, device=device)
    jal.kernel(scale)[1](x, y, 2.0)
    assert y[63].item() == 126 and len(recorded) == 1 and len(files(cache)) == 1


def test_no_directory_no_cache(device, recorded, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JALAPENO_CACHE_DIR", "")
    for _ in range(2):
        assert not jal.kernel(scale).compile(F, F, float, device=device).from_disk
    assert len(recorded) == 2 and not files(tmp_path) and jit.cache_directory() is None
    monkeypatch.delenv("JALAPENO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert jit.cache_directory() == tmp_path / "xdg" / "jalapeno"


def _damages():
    def flipped(data, n):
        return data[:n] + bytes([data[n] ^ 1]) + data[n + 1:]

    other = json.dumps({"key": "another", "name": "scale", "spm_bytes": 1, "acc_bytes": 0, "instructions": 1}).encode() + b"\n"
    import hashlib
    signed = hashlib.sha256(other).hexdigest().encode() + b"\n" + other
    listed = hashlib.sha256(b"[]\n").hexdigest().encode() + b"\n[]\n"
    return {"empty": lambda d: b"", "truncated": lambda d: d[:len(d) // 2], "one byte short": lambda d: d[:-1], "longer": lambda d: d + b"x",
            "image": lambda d: flipped(d, len(d) - 40), "digest": lambda d: flipped(d, 3), "head": lambda d: flipped(d, d.index(b'"spm_bytes"') + 14),
            "garbage": lambda d: b"\xff\x00\n" * 99, "another key": lambda d: signed, "no dictionary": lambda d: listed}


@pytest.mark.parametrize("damage", _damages())
def test_damaged_files_are_as_good_as_none(device, cache, recorded, damage):
    good = jal.kernel(scale).compile(F, F, float, device=device)
    path, = files(cache)
    whole = path.read_bytes()
    path.write_bytes(_damages()[damage](whole))
    rebuilt = jal.kernel(scale).compile(F, F, float, device=device)
    assert not rebuilt.from_disk and rebuilt.image == good.image and len(recorded) == 2
    assert files(cache) == [path] and path.read_bytes() == whole  # and written anew
    assert jal.kernel(scale).compile(F, F, float, device=device).from_disk


def test_the_key_is_compared_not_only_hashed(device, cache, monkeypatch, recorded):
    monkeypatch.setattr(jit, "_cache_file", lambda key: cache / "same.jk")  # every key collides
    one = jal.kernel(scale).compile(F, F, float, device=device)
    two = jal.kernel(scale).compile(F, F, int, device=device)
    assert not two.from_disk and one.image != two.image and len(recorded) == 2
    assert jal.kernel(scale).compile(F, F, int, device=device).from_disk


def test_another_version_builds_anew(device, cache, monkeypatch, recorded):
    jal.kernel(scale).compile(F, F, float, device=device)
    for attribute, value in (("_FORMAT", 99), ("_package_digest", lambda: "another")):
        with monkeypatch.context() as m:
            m.setattr(jit, attribute, value)
            assert not jal.kernel(scale).compile(F, F, float, device=device).from_disk
    assert len(recorded) == 3 and len(files(cache)) == 3
    assert jal.kernel(scale).compile(F, F, float, device=device).from_disk


@pytest.mark.parametrize("obstacle", ["file", "below a file", "directory in its place"])
def test_a_cache_that_cannot_be_written(device, tmp_path, monkeypatch, obstacle):
    blocked = tmp_path / "blocked"
    directory = blocked / "below" if obstacle == "below a file" else blocked
    monkeypatch.setenv("JALAPENO_CACHE_DIR", str(directory))
    if obstacle == "directory in its place":
        jal.kernel(scale).compile(F, F, float, device=device)
        path, = files(blocked)
        path.unlink()
        path.mkdir()
    else:
        blocked.write_text("in the way")
    for _ in range(2):
        assert not jal.kernel(scale).compile(F, F, float, device=device).from_disk
    assert len(files(tmp_path)) == 1 and (not blocked.is_dir() or files(blocked) == [path])


PROGRAM = """
import sys
sys.path.insert(0, {package!r})
import jalapeno as jal, numpy as np
from jalapeno import language as tl
import shared
c = shared.k.compile(jal.float32, jal.float32, float)
x, y = jal.array(np.arange(8, dtype=np.float32)), jal.zeros(8)
shared.k[1](x, y, 2.0)
print(c.from_disk, y[7].item())
"""
SHARED = """
import jalapeno as jal, helpers
from jalapeno import language as tl
@jal.kernel
def k(x, y, f):
    tl.store(y, 0, helpers.twice(tl.load(x, 0, 8)) * f)
"""
HELPERS = "OFFSET = {}\ndef twice(t):\n    return t * 2 + OFFSET\n"


def test_processes_share_the_cache(tmp_path, cache):
    (tmp_path / "shared.py").write_text(SHARED)
    (tmp_path / "program.py").write_text(PROGRAM.format(package=PACKAGE))
    environment = {**os.environ, "JALAPENO_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1", "JAL_LOG": "off"}

    def start():
        return subprocess.Popen([sys.executable, str(tmp_path / "program.py")], env=environment, cwd=tmp_path, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    def finish(p):
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0, err
        return out.split()

    (tmp_path / "helpers.py").write_text(HELPERS.format(0))
    # Several at once: whoever is late finds the file or builds, and writes the same.
    together = [finish(p) for p in [start() for _ in range(3)]]
    assert all(value == "28.0" for _, value in together) and len(files(cache)) == 1
    assert finish(start()) == ["True", "28.0"]
    # A helper in another module counts.
    (tmp_path / "helpers.py").write_text(HELPERS.format(1))
    assert finish(start()) == ["False", "30.0"] and len(files(cache)) == 2


def key(k, sorts=(("float32", 1),), constants=(), limits=(1, 2)):
    return jit.cache_key(k, sorts, dict(constants), limits)


def load_module(tmp_path, text, name="made"):
    path = tmp_path / f"{name}.py"
    path.write_text("import math\nimport numpy as np\nimport jalapeno as jal\nfrom jalapeno import language as tl\n" + text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BASE = """
SCALE, SIZES = 2, (1, [2.5, None])
def deeper(t, *, by=SCALE): return t + by
def helper(t): return deeper(t * SCALE) + SIZES[0]
def make(n):
    def inner(t): return t + n
    return inner
first, second = make(1), make(2)
@jal.kernel
def k(x, *, C=1):
    def local(t): return t - math.pi
    tl.store(x, 0, second(first(local(helper(tl.load(x, 0, 8))))))
"""


@pytest.mark.parametrize("old, new", [
    ("SCALE, SIZES = 2", "SCALE, SIZES = 2.0"), ("[2.5, None]", "[2.5, 0]"), ("t + by", "t - by"), ("by=SCALE", "by=3"),
    ("make(2)", "make(3)"), ("make(1), make(2)", "make(2), make(1)"), ("t - math.pi", "t + math.pi"), ("math.pi", "math.e"),
    ("tl.load(x, 0, 8)", "tl.load(x, 0, 9)"), ("\nSCALE", "\n\nSCALE"), ("def k(", "def kk(")])
def test_what_the_key_depends_on(tmp_path, old, new):
    assert old in BASE
    same = key(load_module(tmp_path, BASE).k)
    assert same is not None and key(load_module(tmp_path, BASE).k) == same
    changed = load_module(tmp_path, BASE.replace(old, new))
    assert key(changed.kk if "kk" in new else changed.k) not in (None, same)


def test_arguments_constants_and_limits_are_in_the_key(tmp_path):
    k = load_module(tmp_path, BASE).k
    keys = [key(k), key(k, (("float32", 2),)), key(k, (("bfloat16", 1),)), key(k, (("int", 0),)), key(k, constants={"C": 1}),
            key(k, constants={"C": 1.0}), key(k, constants={"C": True}), key(k, constants={"C": "1"}), key(k, constants={"C": (1,)}),
            key(k, constants={"C": F}), key(k, constants={"C": 0.0}), key(k, constants={"C": -0.0}), key(k, limits=(1, 3)), key(k, limits=(2, 2))]
    assert None not in keys and len(set(keys)) == len(keys)


def test_other_limits_of_the_chip_build_anew(device, recorded):
    k = jal.kernel(scale)
    p = device.properties
    one = k._compile((("float32", 1),) * 2 + (("float", 0),), {"BLOCK": 64, "OFFSET": 0}, device)

    class Smaller:
        properties = {**p, "spm_bytes": 1024}

    class Tiny:
        properties = {**p, "spm_bytes": 128}

    assert k._compile((("float32", 1),) * 2 + (("float", 0),), {"BLOCK": 64, "OFFSET": 0}, Smaller) is not one and len(recorded) == 2
    with pytest.raises(jal.CompileError, match="needs 256 bytes of scratchpad, a core has 128"):
        k._compile((("float32", 1),) * 2 + (("float", 0),), {"BLOCK": 64, "OFFSET": 0}, Tiny)


def test_the_key_is_of_what_runs_not_of_the_file(tmp_path):
    module = load_module(tmp_path, BASE)
    before = key(module.k)
    (tmp_path / "made.py").write_text("changed, and not loaded again")
    assert key(module.k) == before
    scope = {"tl": tl, "jal": jal}
    exec("def typed(x): tl.store(x, 0, tl.zeros(8))", scope)  # no file at all
    assert key(jal.kernel(scope["typed"])) is not None


@pytest.mark.parametrize("name, value", [("object", object()), ("array", np.zeros(3)), ("dict", {"a": 1}), ("kernel", jal.kernel(scale)),
                                         ("class", Holder)])
def test_what_cannot_be_described_is_not_kept(device, cache, name, value):
    def k(x):
        assert value is not None
        tl.store(x, 0, tl.zeros(8))

    assert key(jal.kernel(k)) is None
    for _ in range(2):
        assert not jal.kernel(k).compile(F, device=device).from_disk
    assert not files(cache)

"""How the package is installed, typed and documented.

JALAPENO_BUILD_DIR names the build directory and JALAPENO_SOURCE_DIR the repository; the package that is imported is the build
directory's.
"""
import ast
import doctest
import importlib.util
import inspect
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import zipfile

import pytest

import jalapeno
from jalapeno import _core

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = pathlib.Path(os.environ.get("JALAPENO_SOURCE_DIR", HERE.parents[1])).resolve()
BUILD = pathlib.Path(os.environ.get("JALAPENO_BUILD_DIR", SOURCE / "build" / "release")).resolve()
FOLDER = SOURCE / "bindings" / "python"
MODULES = [jalapeno, *(importlib.import_module(f"jalapeno.{m.name}") for m in pkgutil.iter_modules(jalapeno.__path__) if m.name != "_core")]
VERSION = re.search(r"project\(jalapeno VERSION ([\d.]+)", (SOURCE / "CMakeLists.txt").read_text())[1]

PROGRAM = """
import json
import jalapeno as jal
from jalapeno import language as tl

@jal.kernel
def double(x, y, *, BLOCK=512):
    i = tl.program_id(0) * BLOCK
    tl.store(y, i, tl.load(x, i, BLOCK) * 2)

x, y = jal.arange(1000, jal.float32), jal.empty(1000)
double[2](x, y)
assert y.tolist() == [2 * k for k in range(1000)]
loaded = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if "libjalapeno" in line}
print(json.dumps([jal.__file__, *loaded]))
"""


def run(*command, cwd, codes=(0,), **env):
    """What the command says, which ends with one of these codes. Of the environment's PYTHONPATH it sees nothing."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MYPYPATH", "JALAPENO_BUILD_DIR")}
    settings = {"JAL_LOG": "off", "JALAPENO_CACHE_DIR": "", "PYTHONDONTWRITEBYTECODE": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env={**kept, **settings, **{k: str(v) for k, v in env.items()}},
                          capture_output=True, text=True)
    assert done.returncode in codes, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_program(python, cwd, **env):
    """(where the package is, where its library is) of a run of PROGRAM."""
    (cwd / "program.py").write_text(PROGRAM)
    package, library = map(pathlib.Path, json.loads(run(python, "program.py", cwd=cwd, **env)))
    return package.parent, library


def package_files():
    """What an installation has beside the extension, relative to jalapeno/."""
    root = FOLDER / "jalapeno"
    return {str(p.relative_to(root)) for pattern in ("*.py", "*.pyi", "py.typed") for p in root.rglob(pattern)}


# ---- Installing ----
def test_cmake_install(tmp_path):
    run("cmake", "--install", BUILD, "--prefix", tmp_path / "at first", cwd=tmp_path)
    prefix = (tmp_path / "at first").rename(tmp_path / "later")  # nothing in it may name the place
    [package] = [p.parent for p in prefix.rglob("jalapeno/__init__.py")]
    assert package_files() == {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file() and p.suffix != ".so"}
    assert not [p for p in package.rglob("*") if p.is_symlink()]
    where, library = run_program(sys.executable, tmp_path, PYTHONPATH=package.parent)
    assert where == package and library.is_relative_to(prefix)


@pytest.mark.parametrize("options, package, rpath", [
    (["-DCMAKE_INSTALL_PREFIX=/usr", "-DCMAKE_INSTALL_LIBDIR=lib/x86_64-linux-gnu"], "lib/python3/dist-packages", "../../../x86_64-linux-gnu"),
    (["-DCMAKE_INSTALL_PREFIX=/usr/local", "-DCMAKE_INSTALL_LIBDIR=lib"], "lib/python{0}.{1}/dist-packages", "../../.."),
    (["-DCMAKE_INSTALL_PREFIX=/opt/x", "-DCMAKE_INSTALL_LIBDIR=lib64", "-DJALAPENO_PYTHON_DIR=py"], "py", "../../lib64"),
])
def test_where_cmake_installs(tmp_path, options, package, rpath):
    run("cmake", "-S", SOURCE, "-B", tmp_path, "-G", "Ninja", "-DJALAPENO_TESTS=OFF", "-DJALAPENO_SAMPLES=OFF", "-DJALAPENO_PYTHON=ON",
        *options, cwd=tmp_path)
    script = (tmp_path / "bindings" / "python" / "cmake_install.cmake").read_text()
    assert f'DESTINATION "${{CMAKE_INSTALL_PREFIX}}/{package.format(*sys.version_info)}/jalapeno"' in script
    assert re.search(r'NEW_RPATH "\\\$ORIGIN:\\\$ORIGIN/' + re.escape(rpath) + '/?"', script)


@pytest.fixture
def venv(tmp_path):
    """A virtual environment that sees Debian's packages, pip among them."""
    missing = [f"python3-{tool}" for tool in ("pip", "setuptools", "wheel") if importlib.util.find_spec(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    run(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    return tmp_path / "venv" / "bin" / "python"


OFFLINE = ["--no-build-isolation", "--no-deps", "--no-index"]


def test_pip_install(tmp_path, venv):
    before = sorted(FOLDER.iterdir())
    run(venv, "-m", "pip", "install", *OFFLINE, ".", cwd=FOLDER, JALAPENO_BUILD_DIR=BUILD)
    assert sorted(FOLDER.iterdir()) == before
    package, library = run_program(venv, tmp_path)
    assert package.is_relative_to(tmp_path / "venv") and library.parent == package
    said = run(venv, "-c", "from importlib.metadata import *; m = metadata('jalapeno'); print(m['Version'], m['Requires-Python'], requires('jalapeno'))",
               cwd=tmp_path)
    assert said.strip() == f"{VERSION} >=3.11 ['numpy (>=1.24)']"


def test_pip_wheel(tmp_path, venv):
    run(venv, "-m", "pip", "wheel", *OFFLINE, "-w", tmp_path, ".", cwd=FOLDER, JALAPENO_BUILD_DIR=BUILD)
    [wheel] = tmp_path.glob("*.whl")
    tag = "cp{0}{1}".format(*sys.version_info)
    assert wheel.name == f"jalapeno-{VERSION}-{tag}-{tag}-linux_{os.uname().machine}.whl"
    held = {n.removeprefix("jalapeno/") for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert held == package_files() | {"libjalapeno.so.0", pathlib.Path(_core.__file__).name}


# ---- Types ----
@pytest.fixture(scope="module")
def mypy(tmp_path_factory):
    """Runs mypy, or its stubtest, on the build directory's package."""
    pytest.importorskip("mypy", reason="the package mypy is not installed")
    cache = tmp_path_factory.mktemp("mypy")

    def check(module, *arguments, **options):
        return run(sys.executable, "-m", module, *arguments, cwd=cache, **options, MYPYPATH=BUILD / "python", PYTHONPATH=BUILD / "python",
                   MYPY_CACHE_DIR=cache)
    return check


def test_package_is_typed(mypy):
    mypy("mypy", "--config-file", HERE / "mypy.ini", "-p", "jalapeno")


def test_users_are_typed(mypy, tmp_path):
    """A program may be checked strictly against the package."""
    (tmp_path / "user.py").write_text("""
import numpy as np
import jalapeno as jal

def run(device: jal.Device) -> list[float]:
    x: jal.Array = jal.array(np.ones((2, 3), np.float32), device=device)
    with jal.Stream(device, priority=1) as stream, stream.capture() as graph:
        y = jal.ops.matmul(x, x.T)
    graph.launch(stream)
    stream.synchronize(timeout=1.5)
    event = jal.Event(device, timing=True)
    event.record(stream)
    try:
        event.synchronize()
    except jal.KernelError as e:
        print(e.record.kernel if e.record else e.code)
    total: float = sum(y.numpy().tolist()[0])
    return [total, event.elapsed(event).device_ns, float(x.device.memory_info()[0])]

async def wait(stream: jal.Stream) -> None:
    await stream

def wrong(device: jal.Device) -> None:
    jal.Stream(device, priority="high")  # type: ignore[arg-type]
    device.properties = {}  # type: ignore[misc]
    jal.Event(device).recorded()  # type: ignore[attr-defined]
""")
    # An installed package's own lines are not told to its users; here they are told to be silent.
    mypy("mypy", "--config-file", os.devnull, "--strict", "--follow-imports", "silent", tmp_path / "user.py")


# Of pybind11, for every class it makes: its metaclass is its own, and a class without a constructor inherits one of any arguments.
PYBIND11 = re.compile(r".* is inconsistent, (metaclass differs|stub does not have \*args argument \"args\")$")


def test_stubs_are_complete(mypy):
    said = mypy("mypy.stubtest", "--mypy-config-file", HERE / "mypy.ini", "--concise", "jalapeno._core", codes=(0, 1)).splitlines()
    assert not [line for line in said if not PYBIND11.match(line)]


SIGNATURE = re.compile(r"^(?:\d+\. )?\w*(\(.*\) -> .*)$")


def signature(node, skip):
    """(names, None where there is none; how many have defaults; *args; result) of a function without its first `skip` parameters."""
    a = node.args
    names = [None if x in a.posonlyargs or re.fullmatch(r"arg\d+", x.arg) else x.arg for x in a.posonlyargs + a.args]
    return names[skip:], len(a.defaults), a.vararg and a.vararg.arg, re.findall(r"\w+", ast.unparse(node.returns))


def stubbed(scope, body):
    """(name, object of the extension, overloads as syntax, whether the first parameter is the object) of what a stub defines."""
    functions = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from stubbed(getattr(scope, node.name), node.body)
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name == "__init__"):
            functions.setdefault(node.name, []).append(node)
    for name, overloads in functions.items():
        o = inspect.getattr_static(scope, name)
        yield f"{scope.__name__}.{name}", o, overloads, inspect.isclass(scope) and not isinstance(o, staticmethod)


@pytest.mark.parametrize("module, stub", [(_core, "__init__.pyi"), (_core.tile, "tile.pyi")])
def test_stubs_agree_with_the_extension(module, stub):
    """stubtest cannot see the parameters of a C++ function; pybind11 writes them into the docstring."""
    seen = 0
    for name, o, overloads, method in stubbed(module, ast.parse((FOLDER / "jalapeno" / "_core" / stub).read_text()).body):
        text = (o.fget if isinstance(o, property) else o.__func__ if isinstance(o, staticmethod) else o).__doc__
        # A class that is defined later than the function goes by its C++ name.
        lines = [m[1].replace("jalapeno::python::", "") for m in map(SIGNATURE.match, text.splitlines()) if m]
        told = [signature(ast.parse(f"def f{line}: ...").body[0], method) for line in lines]
        said = [signature(node, method) for node in overloads]
        assert [t[:3] for t in told] == [s[:3] for s in said], name
        for (*_, true), (*_, result) in zip(told, said):
            kind = true[-1]
            assert kind in result or not (kind in ("None", "bool", "int", "float", "bytes") or hasattr(module, kind)), f"{name} -> {true}"
        seen += len(said)
    assert seen > 40


# ---- Documentation ----
EXAMPLES = [t for m in MODULES for t in doctest.DocTestFinder().find(m) if t.examples]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda t: t.name)
def test_examples(example):
    told = []
    assert doctest.DocTestRunner().run(example, out=told.append).failed == 0, "".join(told)


def text_of(o):
    """The docstring, a method's perhaps inherited, without what Python and pybind11 write themselves."""
    doc = (o.__doc__ if inspect.isclass(o) else inspect.getdoc(o)) or ""
    if inspect.isclass(o) and doc.startswith(f"{o.__name__}("):  # a dataclass
        return ""
    return "".join(line for line in doc.splitlines() if not SIGNATURE.match(line) and not line.endswith("(*args, **kwargs)") and
                   line != "Overloaded function.").strip()


def public(scope):
    """(name, what) of all that users may call or read; of classes, what they define themselves."""
    names = getattr(scope, "__all__", None) or [n for n in vars(scope) if not n.startswith("_")]
    for name in names:
        o = inspect.getattr_static(scope, name)
        o = o.__func__ if isinstance(o, (classmethod, staticmethod)) else o
        if not (inspect.isclass(o) or inspect.isroutine(o) or isinstance(o, property)):
            continue
        if inspect.ismodule(scope) and o.__module__ != scope.__name__:
            continue
        label = f"{scope.__name__}.{name}" if inspect.ismodule(scope) else f"{scope.__module__}.{scope.__qualname__}.{name}"
        yield label, o
        if inspect.isclass(o):
            yield from public(o)


def test_everything_is_documented():
    # _core.tile is not walked: its users have jalapeno.language, which is.
    things = [(m.__name__, m) for m in [*MODULES, _core, _core.tile]] + [t for m in [*MODULES, _core] for t in public(m)]
    assert len(things) > 250
    silent = sorted(name for name, o in things if not text_of(o))
    assert not silent, "no docstring: " + ", ".join(silent)

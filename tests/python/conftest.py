"""What the tests of the Python package share. test_llm.py needs none of it, and no jalapeno package."""
import os
import re
import subprocess
import sys
import textwrap

import pytest


@pytest.fixture(scope="session")
def device():
    """An emulated chip for all tests; those that break or fill one open their own."""
    import jalapeno
    with jalapeno.Device("emu:?hbm=512M") as d:
        yield d


@pytest.fixture
def stream(device):
    """A stream of its own for each test, back in order afterwards."""
    import jalapeno
    s = jalapeno.Stream(device)
    yield s
    s.reset()


@pytest.fixture
def python():
    """Runs code in another process: (exit code, stdout, stderr). Under a sanitizer it may take longer."""
    slow = 4 if "libasan" in os.environ.get("LD_PRELOAD", "") else 1

    def run(code, *arguments, timeout=120, **environment):
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True,
                              timeout=timeout * slow, env={**os.environ, "JAL_LOG": "off", **environment})
        return done.returncode, done.stdout, done.stderr
    return run


@pytest.fixture
def refuses():
    """with refuses(class, text): the block raises that class, and its message contains the text."""
    return lambda kind, text: pytest.raises(kind, match=re.escape(text))

"""Lets pip build the package with the repository's CMake. Everything else is in pyproject.toml."""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TOP = Path(__file__).resolve().parents[2]


class BuildWithCMake(build_ext):
    """Puts the extension and the library it needs into the package: built in build/pip, or taken as they are from the build
    directory JALAPENO_BUILD_DIR names."""

    def run(self) -> None:
        if self.editable_mode:
            raise SystemExit("an editable installation is not supported; PYTHONPATH=build/release/python runs the sources as they are")
        build = TOP / os.environ.get("JALAPENO_BUILD_DIR", "build/pip")
        if "JALAPENO_BUILD_DIR" not in os.environ:
            subprocess.run(["cmake", "-S", TOP, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DJALAPENO_PYTHON=ON",
                            "-DJALAPENO_TESTS=OFF", "-DJALAPENO_SAMPLES=OFF", f"-DPython3_EXECUTABLE={sys.executable}"], check=True)
            subprocess.run(["cmake", "--build", build, "--target", "jalapeno_python"], check=True)
        package = Path(self.build_lib, "jalapeno").resolve()
        subprocess.run(["cmake", "--install", build, "--component", "wheel", "--prefix", package, "--strip"], check=True)
        library = package / "libjalapeno.so.0"
        library.resolve().replace(library)  # wheels hold no symbolic links
        extension = self.get_ext_fullpath("jalapeno._core")
        if not Path(extension).exists():
            raise SystemExit(f"{build} was built for another Python; expected {Path(extension).name}")


# setuptools would leave its files beside the sources.
scratch = tempfile.TemporaryDirectory()
setup(version=re.search(r"project\(jalapeno VERSION ([\d.]+)", (TOP / "CMakeLists.txt").read_text())[1],
      ext_modules=[Extension("jalapeno._core", [])], cmdclass={"build_ext": BuildWithCMake},
      options={"build": {"build_base": scratch.name}, "egg_info": {"egg_base": scratch.name}})

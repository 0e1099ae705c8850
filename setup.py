"""Builds the compiled core by calling CMake; everything else is in pyproject.toml.

Environment variables:
    FRANCA_FAST_BUILD: "auto" (default: a failing build leaves a pure-PyTorch package), "required"
        (a failing build or a compiler warning is an error; for CI), "off" (do not build).
    FRANCA_FAST_CUDA: "auto" (default: when nvcc is found and a GPU is visible), "on", "off".
    FRANCA_FAST_CUDA_ARCHS: CUDA architectures to build instead of the default list, e.g. "90a".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def choice(name: str, accepted: tuple[str, ...]) -> str:
    """Value of an environment variable; the first accepted value is the default."""
    value = os.environ.get(name) or accepted[0]
    if value not in accepted:
        raise SystemExit(f"{name}={value!r} is not one of: {', '.join(accepted)}")
    return value


def tool(name: str) -> str | None:
    """Path of a build tool, also one installed beside the Python that runs this."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), beside]))


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        mode = choice("FRANCA_FAST_BUILD", ("auto", "required", "off"))
        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        module.unlink(missing_ok=True)  # one of an earlier build would be packaged
        if mode == "off":
            return
        try:
            self.run_cmake(module.parent, warnings_are_errors=mode == "required")
        except (OSError, ImportError, subprocess.CalledProcessError) as error:
            if mode == "required":
                raise
            reason = str(error)
            if isinstance(error, subprocess.CalledProcessError):
                reason = f"cmake ended with status {error.returncode}; its messages are above"
            self.warn(
                f"the compiled core was not built ({reason}). The package works without it, on the "
                "slower 'torch' backend. Install a C++17 compiler and reinstall to build it; "
                "FRANCA_FAST_BUILD=required makes this an error."
            )

    def run_cmake(self, target: Path, warnings_are_errors: bool) -> None:
        import pybind11

        cmake = tool("cmake")
        if cmake is None:
            raise FileNotFoundError("cmake was not found")
        build = (Path(self.build_temp) / "cmake").resolve()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "FRANCA_FAST_PYTHON": "ON",
            "FRANCA_FAST_WERROR": "ON" if warnings_are_errors else "OFF",
            "FRANCA_FAST_CUDA": choice("FRANCA_FAST_CUDA", ("auto", "on", "off")),
            "FRANCA_FAST_CUDA_ARCHS": os.environ.get("FRANCA_FAST_CUDA_ARCHS", ""),
        }
        ninja = tool("ninja")
        # Make is the generator to fall back on; a cached build folder keeps the one it began with.
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "--fresh", *generator]
        subprocess.run(configure + [f"-D{k}={v}" for k, v in options.items()], check=True)
        subprocess.run([cmake, "--build", str(build), "--parallel"], check=True)
        install = [cmake, "--install", str(build), "--prefix", str(target)]
        subprocess.run([*install, "--component", "python"], check=True)


setup(
    # optional: an editable install must not look for the file when it was not built.
    ext_modules=[Extension("franca_fast._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)

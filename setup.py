"""Adds the kernels' sources to the wheel; METAZOO_BUILD=1 also compiles them (docs/kernels.md)."""

import importlib
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def builder() -> ModuleType:
    """Import metazoo.kernels.build without metazoo, whose dependencies may be missing here."""
    for name in ("metazoo", "metazoo.kernels"):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(ROOT.joinpath(*name.split(".")))]
    return importlib.import_module("metazoo.kernels.build")


class WithSources(build_py):
    def run(self):
        super().run()
        # An editable install finds the sources in the checkout.
        if not self.editable_mode:
            target = Path(self.build_lib, "metazoo", "csrc")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(ROOT / "csrc", target, ignore=shutil.ignore_patterns("*.md"))


class AheadOfTime(build_ext):
    def build_extension(self, ext):
        build = builder()
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            built = build.build(
                "cuda",
                csrc=ROOT / "csrc",
                folder=Path(self.build_temp),
                cuda=build.cuda_of_torch() or "any",
                again=True,
            )
        except build.KernelBuildError as error:
            raise SystemExit(f"error: METAZOO_BUILD=1, but {error}") from None
        shutil.copyfile(built, target)


ahead = os.environ.get("METAZOO_BUILD") or "0"
if ahead not in ("0", "1"):
    raise SystemExit(f"error: METAZOO_BUILD is '{ahead}'; it takes 0, or 1 to compile the kernels")
setup(
    cmdclass={"build_py": WithSources, "build_ext": AheadOfTime},
    ext_modules=[Extension("metazoo.kernels._cuda", sources=[])] if ahead == "1" else [],
)

"""Build script that packages every source folder with an `__init__.py`."""

from __future__ import annotations

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

FOLDERS = ("pipeline", "prior", "recipes")
"""Top-level source folders, which are installed as subpackages of `priorkit`."""


class BuildModules(build_py):
    """Build step that leaves `setup.py` out of the installed `priorkit` package.

    Without this class, setuptools would install it as a module, because it is in the folder of the root package.
    """

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        modules: list[tuple[str, str, str]] = super().find_package_modules(package, package_dir)
        return [module for module in modules if module[1] != "setup"]


if __name__ == "__main__":
    names = find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
    setup(packages=["priorkit", *(f"priorkit.{name}" for name in names)], cmdclass={"build_py": BuildModules})

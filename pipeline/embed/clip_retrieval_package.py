"""Import of the clip-retrieval package beside current versions of numpy, pyarrow and open_clip.

clip-retrieval pins these packages to old versions, so pip must install it with `--no-deps`. Its reader, mapper and
writer work with current versions, but importing them normally fails for three reasons. This module works around them
without changing any installed file:

- The package's `__init__` modules import a web service and an index builder, whose dependencies are missing. The files
  of the reader, the mapper and the writer are therefore loaded directly.
- The mapper imports sentence_transformers for a kind of model that priorkit does not use, and the package `clip`
  imports pkg_resources, which current versions of setuptools no longer contain. Stand-ins replace both modules during
  the import.
- all_clip knows no model that is stored in a folder. The model that priorkit has loaded is therefore registered with
  all_clip while the mapper is created.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import packaging.version

from ..doctor.requirements import CLIP_RETRIEVAL, DISTRIBUTIONS, install_command
from ..errors import PriorkitError

_MODULES = ("clip_retrieval", "all_clip", "clip")
"""Modules that the packages in `CLIP_RETRIEVAL` install."""
_ALSO_IMPORTED = ("webdataset", "pandas")
"""Packages that clip-retrieval's reader and writer import later. They are installed along with img2dataset."""
_MODEL_NAME = "priorkit:"
"""Name under which `Package.build_mapper` registers a model with all_clip."""


@dataclass(frozen=True)
class Package:
    """Parts of the clip-retrieval package and of all_clip, the package that loads its models."""

    reader: Any
    """clip-retrieval's class `WebdatasetReader`."""
    mapper: Any
    """clip-retrieval's class `ClipMapper`."""
    writer: Any
    """clip-retrieval's class `NumpyWriter`."""
    all_clip: Any
    """Module `all_clip.main`."""
    wrapper: Any
    """all_clip's class `OpenClipWrapper`, which runs an open_clip model under autocast on a GPU."""

    def build_mapper(self, model: Any, preprocess: Any, tokenizer: Any, *, image: bool, text: bool) -> Any:
        """Create a mapper that runs the given model instead of one that all_clip loads by name.

        Args:
            model: CLIP model with the methods `encode_image` and `encode_text`, on the device that clip-retrieval
                uses: a GPU if torch finds one, otherwise the CPU.
            preprocess: image transform of the model.
            tokenizer: tokenizer of the model.
            image, text: True to embed images, True to embed captions.
        """

        def load(name: str, use_jit: bool, device: str, cache_path: str | None) -> tuple[Any, Any, Any]:
            return self.wrapper(inner_model=model, device=device), preprocess, tokenizer

        with _registered(self.all_clip, load):
            return self.mapper(
                enable_image=image, enable_text=text, enable_metadata=True, use_mclip=False,
                clip_model=_MODEL_NAME, use_jit=False, mclip_model=None,
            )  # fmt: skip


def require_package() -> None:
    """Check that clip-retrieval and the packages it needs are installed, without importing them.

    Raises:
        PriorkitError: one of them is missing. The message gives the command that installs it.
    """
    for module in (*_MODULES, *_ALSO_IMPORTED):
        if importlib.util.find_spec(module) is None:
            raise _error(ModuleNotFoundError(f"No module named {module!r}", name=module))


@functools.lru_cache(maxsize=1)
def import_package() -> Package:
    """Import clip-retrieval's reader, mapper and writer, and all_clip.

    Raises:
        PriorkitError: a package is missing or cannot be imported. The message gives the command that installs it.
    """
    require_package()
    try:
        with _stand_ins():
            all_clip = importlib.import_module("all_clip.main")
            wrapper = importlib.import_module("all_clip.open_clip").OpenClipWrapper
            reader, mapper, writer = (_load_file(name) for name in ("reader", "mapper", "writer"))
        return Package(reader.WebdatasetReader, mapper.ClipMapper, writer.NumpyWriter, all_clip, wrapper)
    except (ImportError, AttributeError, OSError) as error:
        raise _error(error) from error


def _error(error: Exception) -> PriorkitError:
    """Return an error that names the missing module and the command that installs its package."""
    module = (getattr(error, "name", None) or "").partition(".")[0]
    package = DISTRIBUTIONS.get(module, module)
    is_part = not module or package in CLIP_RETRIEVAL
    command = install_command([*CLIP_RETRIEVAL] if is_part else [package])
    return PriorkitError(f"embed.engine=clip-retrieval: {error}; install it: {command}")


def _load_file(name: str) -> ModuleType:
    """Load a module of the subpackage `clip_retrieval.clip_inference` from its file.

    The `__init__` modules of the package and the subpackage are not run, and `sys.modules` does not change, so that
    other code can still import the package normally.
    """
    package = importlib.util.find_spec("clip_retrieval")
    if package is None or not package.submodule_search_locations:
        raise ImportError("clip_retrieval is not a package", name="clip_retrieval")
    path = Path(package.submodule_search_locations[0]) / "clip_inference" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"clip_retrieval.clip_inference.{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Context manager that replaces the modules whose contents are imported, but not used, by stand-ins."""
    transformers, resources = ModuleType("sentence_transformers"), ModuleType("pkg_resources")
    transformers.SentenceTransformer = None  # type: ignore[attr-defined]
    resources.packaging = packaging  # type: ignore[attr-defined]
    stand_ins = {module.__name__: module for module in (transformers, resources)}
    before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]
        sys.modules.update(before)


@contextlib.contextmanager
def _registered(all_clip: Any, load: Any) -> Iterator[None]:
    """Context manager in which all_clip loads the model `_MODEL_NAME` with the given function.

    On exit, the function is removed, and all_clip's caches are cleared. Otherwise, they would keep the model in memory.
    """
    registry = all_clip._CLIP_REGISTRY
    others = dict(registry)
    registry.clear()
    registry.update({_MODEL_NAME: load, **others})  # first, since the last prefix is empty and matches any name
    try:
        yield
    finally:
        registry.clear()
        registry.update(others)
        all_clip.load_clip.cache_clear()
        all_clip.load_clip_without_warmup.cache_clear()

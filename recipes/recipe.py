"""A recipe: one YAML file with the settings of every stage. All settings are validated before any stage starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..pipeline.clip.settings import ClipSettings
from ..pipeline.config import PipelineSettings
from ..pipeline.contract.embedding_files import pair_files
from ..pipeline.contract.manifest import read_manifest, require_manifest
from ..pipeline.contract.other_layouts import require_known_layout
from ..pipeline.contract.storage import Store, open_location
from ..pipeline.errors import InputError, SettingsError
from ..pipeline.settings import parse_settings, with_overrides
from ..pipeline.yaml_text import PlainScalar, YamlMapping, read_yaml
from ..prior.evaluate.settings import EvaluateSettings
from ..prior.train.settings import TrainSettings

DEMO_URLS = "priorkit:demo"
"""Value of `urls` for the images of the demo; with `:PORT` appended, they are served on that port."""
DEMO_PORT = 47811
"""Default port of the demo's server. It is fixed, so that the URLs are the same in every run."""


class Recipe(PipelineSettings):
    """Settings of every stage from a list of URLs to a trained, evaluated prior."""

    train: TrainSettings = TrainSettings()
    """Training of a prior on embeddings."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation of a prior."""

    @property
    def demo_port(self) -> int | None:
        """Port of this machine on which the demo's images are served; None if the list is not the demo's."""
        if not re.fullmatch(rf"{DEMO_URLS}(:\d+)?", self.urls):
            return None
        return int(self.urls.removeprefix(DEMO_URLS).lstrip(":") or DEMO_PORT)

    @property
    def url_list(self) -> str:
        """List to download: `urls`, or the path of the demo's list, which is beside the folder of image shards."""
        if self.demo_port is None:
            return self.urls
        store = Store(self.folders.images)
        if not store.is_local:
            raise SettingsError(f"urls={self.urls} makes images beside folders.images, so {store.url} must be local")
        return (Path(self.folders.images).parent / "urls.parquet").as_posix()


def load_recipe(path: str | None, overrides: Sequence[str] = (), sections: Sequence[str] | None = None) -> Recipe:
    """Read a recipe, or return the defaults if `path` is None.

    Args:
        path: a YAML file, local or remote, or the name of a recipe that comes with priorkit. `recipes/NAME.yaml` also
            names such a recipe if no file of that path exists.
        overrides: settings of the form `a.b=value`, where the value is YAML.
        sections: sections that may be overridden because the caller reads them; None for all.

    Raises:
        InputError: the file does not exist, or is not YAML.
        SettingsError: a key or value is wrong; the message names it and the nearest known key.
    """
    values = _read_yaml(path) if path is not None else {}
    source = f"{path or 'settings'} with --set" if overrides else path or "settings"
    return parse_settings(Recipe, with_overrides(values, overrides, sections), source)


def require_same_clip(recipe: Recipe, embeddings: str) -> None:
    """Refuse embeddings of another CLIP than the one that the recipe names.

    Folders of other tools do not record their CLIP. For these, the recipe is trusted.

    Raises:
        InputError: `embeddings` holds no embeddings, or `priorkit embed` ended before it recorded a CLIP.
        SettingsError: another CLIP made the embeddings.
    """
    if declared_clip(recipe) is None:
        return
    from ..pipeline.clip.encoder import clip_source
    from ..pipeline.clip.identity import is_same_clip

    store = Store(embeddings)
    if read_manifest(store) is None:
        if pair_files(store.names(), store.url):
            return
        require_known_layout(store)
    about = require_manifest(store, "embed").about
    if "clip" not in about:
        raise InputError(f"{embeddings}: `priorkit embed` ended before it had a CLIP; run it again")
    if not is_same_clip(about["clip"], about.get("clip_settings", {}), recipe.embed.clip):
        made_by, wanted = about["clip"]["source"], clip_source(recipe.embed.clip)
        raise SettingsError(
            f"the recipe's CLIP, {_clip_name(wanted)}, is not the one that made {embeddings}, {_clip_name(made_by)}; "
            "set embed.clip.model and embed.clip.pretrained to what made them, or name other embeddings"
        )


def _clip_name(source: Mapping[str, Any]) -> str:
    """Format a result of `clip_source` for a message."""
    files = ", ".join(f"{name} of SHA-256 {digest[:12]}" for name, digest in source.get("files", {}).items())
    return f"{source['model']} ({source.get('pretrained') or files})"


def declared_clip(recipe: Recipe) -> ClipSettings | None:
    """Return the CLIP settings that a recipe sets itself; None if it leaves them at their defaults."""
    declared = "embed" in recipe.model_fields_set and "clip" in recipe.embed.model_fields_set
    return recipe.embed.clip if declared else None


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with priorkit."""
    folder = resources.files(_recipe_package())
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML of a recipe that comes with priorkit.

    Raises:
        InputError: no recipe has this name; the message lists the names.
    """
    if name not in recipe_names():
        raise InputError(f"no recipe {name!r}; there are {', '.join(recipe_names())}")
    return (resources.files(_recipe_package()) / f"{name}.yaml").read_text(encoding="utf-8")


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a recipe that comes with priorkit to a new file, or into a folder as `NAME.yaml`.

    Returns:
        The path of the new file.

    Raises:
        InputError: no recipe has this name, or the file exists already.
    """
    text = recipe_text(name)
    target = destination / f"{name}.yaml" if destination.is_dir() else destination
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(f"{target} exists already; name another file") from None
    return target


def _recipe_package() -> str:
    """Return the dotted name of this package, which holds the YAML files."""
    return f"{__name__.split('.')[0]}.recipes"


def _read_yaml(path: str) -> dict[str, Any]:
    """Read the sections of a recipe by path or name."""
    try:
        text = recipe_text(path) if path in recipe_names() else _read_file(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such recipe file; `priorkit recipes list` shows those that come with it"
        ) from None
    except (IsADirectoryError, ValueError) as error:  # ValueError: the path contains a null byte
        raise InputError(f"{path}: not a recipe file ({error})") from None
    try:
        values = read_yaml(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if values is None:
        return YamlMapping()
    if not isinstance(values, dict):
        raise InputError(f"{path}: a recipe is a mapping of sections, this is a {_kind(values)}")
    return values


def _kind(value: Any) -> str:
    """Return the name of a value's type, for a message."""
    return type(value.value if isinstance(value, PlainScalar) else value).__name__


def _read_file(path: str) -> str | bytes:
    """Read a recipe file, or the recipe that comes with priorkit if `recipes/NAME.yaml` does not exist."""
    fs, plain_path = open_location(path)
    try:
        return fs.cat_file(plain_path)  # type: ignore[no-any-return]
    except FileNotFoundError:
        for name in recipe_names():
            if path == f"recipes/{name}.yaml":  # the path of the recipe in a checkout
                return recipe_text(name)
        raise

"""Recipes: YAML files with the settings of every stage, all validated before any stage starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from fsspec.implementations.local import LocalFileSystem

from ..pipeline.clip.settings import ClipSettings
from ..pipeline.config import PipelineSettings
from ..pipeline.contract.embedding_files import EMBEDDING_STAGES, pair_files
from ..pipeline.contract.manifest import read_manifest, require_stage
from ..pipeline.contract.storage import Store, open_location
from ..pipeline.errors import InputError, SettingsError
from ..pipeline.settings import parse_settings, with_overrides
from ..pipeline.yaml_text import PlainScalar, YamlMapping, read_yaml
from ..prior.evaluate.settings import EvaluateSettings
from ..prior.train.settings import TrainSettings

DEMO_URLS = "priorkit:demo"
"""Value of `urls` that selects the demo's images. `priorkit:demo:PORT` also sets the port of the local server."""
_DEFAULT_URLS = "urls.parquet"
"""URL list of a recipe that names neither a list nor a folder to begin with."""
StageName = Literal["download", "embed", "train", "evaluate"]
STAGES: tuple[StageName, ...] = ("download", "embed", "train", "evaluate")
"""Stage names, in the order in which the stages run."""
DEMO_PORT = 47811
"""Default port of the demo's server, fixed so that the URLs are the same in every run."""


class Recipe(PipelineSettings):
    """Settings of every stage, from a URL list to a trained and evaluated prior."""

    train: TrainSettings = TrainSettings()
    """Settings for training a prior on embeddings."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Settings for evaluating a prior."""

    @property
    def first_stage(self) -> StageName:
        """First stage of a run of this recipe: the one that reads the list or the folder that the recipe names."""
        if self.urls is not None:
            return "download"
        named = self.folders.model_fields_set
        return "embed" if "images" in named else "train" if "embeddings" in named else "download"

    def described(self) -> dict[str, Any]:
        """Return all settings as JSON values, except those of stages before the first stage of a run.

        A recipe file with these settings describes the same run.
        """
        values = self.model_dump(mode="json")
        if self.first_stage == "download":
            return {**values, "urls": self.urls or _DEFAULT_URLS}
        del values["urls"], values["download"]
        if self.first_stage == "train":
            del values["folders"]["images"]
            clip = values.pop("embed")["clip"]
            return values if declared_clip(self) is None else {**values, "embed": {"clip": clip}}
        return values

    @property
    def demo_port(self) -> int | None:
        """Port of the local server for the demo's images; None if the recipe does not use the demo's URL list."""
        if self.urls is None or not re.fullmatch(rf"{DEMO_URLS}(:\d+)?", self.urls):
            return None
        return int(self.urls.removeprefix(DEMO_URLS).lstrip(":") or DEMO_PORT)

    @property
    def url_list(self) -> str:
        """Location of the URL list: the value of `urls`, or, for the demo, `urls.parquet` next to the image folder.

        If `urls` is unset, it is `urls.parquet` in the working directory.

        Raises:
            SettingsError: the recipe uses the demo's URL list, but `folders.images` is not a local folder.
        """
        if self.demo_port is None:
            return self.urls or _DEFAULT_URLS
        store = Store(self.folders.images)
        if not store.is_local:
            raise SettingsError(f"urls={self.urls} makes images beside folders.images, so {store.url} must be local")
        return (Path(self.folders.images).parent / "urls.parquet").as_posix()


def load_recipe(path: str | None, overrides: Sequence[str] = (), sections: Sequence[str] | None = None) -> Recipe:
    """Load a recipe, apply overrides, and validate the resulting settings.

    Args:
        path: path of a local or remote YAML file, or the name of a built-in recipe. If the path is
            `recipes/NAME.yaml` and this file does not exist, the built-in recipe NAME is loaded. None loads the
            defaults.
        overrides: settings of the form `a.b=value`, where the value is written in YAML.
        sections: names of the sections that the caller uses. Overrides of other sections raise an error; None allows
            overrides of all sections.

    Raises:
        InputError: the file does not exist, or is not YAML.
        SettingsError: a key or value is invalid. For an unknown key, the message contains the most similar known keys.
    """
    values = _read_yaml(path) if path is not None else {}
    source = f"{path or 'settings'} with --set" if overrides else path or "settings"
    return parse_settings(Recipe, with_overrides(values, overrides, sections), source)


def require_same_clip(recipe: Recipe, embeddings: str) -> None:
    """Check that embeddings were made by the CLIP model that the recipe names.

    Folders written by other tools are not checked, because they do not record the CLIP model.

    Args:
        recipe: recipe to compare with. If it does not set a CLIP model, nothing is checked.
        embeddings: folder of embeddings.

    Raises:
        InputError: the folder contains no embeddings, or `priorkit embed` stopped before it recorded the CLIP
            model.
        SettingsError: the embeddings were made by a different CLIP model.
    """
    if declared_clip(recipe) is None:
        return
    from ..pipeline.clip.encoder import clip_source
    from ..pipeline.clip.identity import is_same_clip
    from ..pipeline.contract.other_layouts import require_known_layout

    store = Store(embeddings)
    if read_manifest(store) is None:
        if pair_files(store.names(), store.url):
            return
        require_known_layout(store)
    manifest = require_stage(store, read_manifest(store), *EMBEDDING_STAGES)
    about = manifest.about
    if "clip" not in about and manifest.stage == "adopt":  # no CLIP made them, so there is none to compare
        return
    if "clip" not in about:
        raise InputError(f"{embeddings}: `priorkit embed` ended before it had a CLIP; run it again")
    if not is_same_clip(about["clip"], about.get("clip_settings", {}), recipe.embed.clip):
        made_by, wanted = about["clip"]["source"], clip_source(recipe.embed.clip)
        raise SettingsError(
            f"the recipe's CLIP, {_clip_name(wanted)}, is not the one that made {embeddings}, {_clip_name(made_by)}; "
            "set embed.clip.model and embed.clip.pretrained to what made them, or name other embeddings"
        )


def _clip_name(source: Mapping[str, Any]) -> str:
    """Return a string that identifies a CLIP model in messages.

    It consists of the model's name and either the name of its pretrained weights or the hashes of its files.

    Args:
        source: description of the model, as returned by `clip_source`.
    """
    files = ", ".join(f"{name} of SHA-256 {digest[:12]}" for name, digest in source.get("files", {}).items())
    return f"{source['model']} ({source.get('pretrained') or files})"


def declared_clip(recipe: Recipe) -> ClipSettings | None:
    """Return the recipe's CLIP settings, or None if the recipe does not set them explicitly."""
    declared = "embed" in recipe.model_fields_set and "clip" in recipe.embed.model_fields_set
    return recipe.embed.clip if declared else None


def recipe_names() -> list[str]:
    """Return the sorted names of the built-in recipes."""
    folder = resources.files(_recipe_package())
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def recipe_text(name: str) -> str:
    """Return the YAML text of a built-in recipe.

    Raises:
        InputError: no built-in recipe has this name. The message lists the built-in recipes.
    """
    if name not in recipe_names():
        raise InputError(f"no recipe {name!r}; there are {', '.join(recipe_names())}")
    return (resources.files(_recipe_package()) / f"{name}.yaml").read_text(encoding="utf-8")


def copy_recipe(name: str, destination: Path) -> Path:
    """Copy a built-in recipe to a new file.

    Args:
        name: name of the recipe.
        destination: path of the new file, or of an existing folder in which `NAME.yaml` is created.

    Returns:
        The path of the new file.

    Raises:
        InputError: no built-in recipe has this name, or the file already exists.
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
    """Return the dotted name of the package that contains the YAML files of the built-in recipes."""
    return f"{__name__.split('.')[0]}.recipes"


def _read_yaml(path: str) -> dict[str, Any]:
    """Return the settings of a recipe file or a built-in recipe, keyed by section; empty for an empty file.

    Args:
        path: path of a file, or the name of a built-in recipe.

    Raises:
        InputError: the file does not exist, or its content is not a YAML mapping.
    """
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
    """Return the name of the Python type of a value read from YAML, for an error message."""
    return type(value.value if isinstance(value, PlainScalar) else value).__name__


def _read_file(path: str) -> str | bytes:
    """Return the content of a local or remote recipe file.

    If `path` is `recipes/NAME.yaml` and this file does not exist, return the built-in recipe NAME.

    Raises:
        FileNotFoundError: neither the file nor such a built-in recipe exists.
    """
    fs, plain_path = open_location(path)
    try:
        if isinstance(fs, LocalFileSystem):
            return Path(plain_path).read_bytes()  # fsspec seeks, which fails for a pipe such as bash's <(command)
        return fs.cat_file(plain_path)  # type: ignore[no-any-return]
    except FileNotFoundError:
        for name in recipe_names():
            if path == f"recipes/{name}.yaml":  # the recipe's path in a source checkout
                return recipe_text(name)
        raise

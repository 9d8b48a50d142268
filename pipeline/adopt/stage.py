"""Adopt stage: plans, runs and resumes the conversion of embeddings that other programs wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ..compute.settings import ComputeSettings
from ..compute.stage import (
    ProgressCallback,
    StagePlan,
    StageResult,
    free_bytes,
    no_progress,
    require_space,
    require_success,
    run_shards,
)
from ..contract.commit import check_stage, open_stage
from ..contract.embedding_files import IN_PLACE_FILES
from ..contract.manifest import Manifest, fingerprint, pending_shards
from ..contract.storage import Store
from ..errors import FolderError, InputError, SettingsError
from .candidates import role_of
from .find import AdoptTask, Found, Space, find_embeddings, plan_tasks
from .in_place import InPlaceWorker, require_in_place
from .rows import choose_columns
from .settings import AdoptSettings
from .worker import AdoptWorker, stats_name

STAGE = "adopt"
_ASSUMED_BYTES_PER_SECOND = 200e6
"""Speed of the conversion, in bytes of output per second, assumed for the time estimate of `--dry-run`."""
_METADATA_BYTES = 100
"""Size of a row's metadata in bytes, assumed for the disk space estimate."""


def adopt(
    location: str,
    embeddings: str | None = None,
    settings: AdoptSettings | None = None,
    *,
    compute: ComputeSettings | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = no_progress,
) -> StageResult:
    """Convert embeddings that other programs wrote to a folder in priorkit's layout. Finished shards are kept.

    Args:
        location: folder or file with the embeddings, local or remote.
        embeddings: folder to write; None only with `settings.in_place`.
        settings: adopt settings. There is no default, since they say which model made the embeddings.
        compute: settings that control where the work runs; None for this process.
        limit: number of rows to adopt, starting with the first; None for all.
        overwrite: True to discard the content of the folder and start again.
        progress: callback that receives progress updates.

    Returns:
        Result of the stage. Its notes describe the spaces, dtypes and norms.

    Raises:
        InputError: there are no embeddings, files do not belong together, or a row has an invalid embedding.
        SettingsError: settings contradict each other, or name something that does not exist.
        FolderError: the folder was made by another stage or with other settings, or the disk has too little space.
    """
    settings = _require_settings(settings, embeddings, location, limit)
    store = Store(location if settings.in_place else str(embeddings))
    found = find_embeddings(location, settings)
    tasks = plan_tasks(found, settings, limit)
    manifest = _manifest(found, settings, tasks)
    files = None
    if settings.in_place:
        files = require_in_place(store, found, tasks)
    existing = _check_folder(store, manifest, settings, tasks, limit, overwrite=overwrite)
    if not settings.in_place:
        require_space(_plan(store, found, existing or manifest, tasks, settings))
    inputs = {task.name: task.input for task in tasks}
    make_worker: Any = InPlaceWorker if settings.in_place else AdoptWorker
    with open_stage(store, manifest, overwrite=overwrite, beside=settings.in_place) as folder:
        folder.manifest.input["sha256"] = fingerprint([task.input for task in tasks])
        folder.describe(**_about(found, settings, files))
        result = run_shards(
            folder,
            lambda pending: (task for task in tasks if task.name in set(pending)),
            inputs,
            partial(make_worker, store, settings, folder.manifest),
            compute or ComputeSettings(),
            progress,
        )
    require_success(result, "an embedding")
    statistics = _statistics(store, found, tasks)
    return replace(result, statistics=statistics, notes=[*_describe(statistics), *_notes(found, settings)])


def plan_adopt(
    location: str,
    embeddings: str | None,
    settings: AdoptSettings,
    *,
    limit: int | None = None,
    overwrite: bool = False,
) -> StagePlan:
    """Return the number of shards and rows that `adopt` would write, and estimates of the time and disk space.

    Nothing is written. See `adopt` for the arguments.
    """
    settings = _require_settings(settings, embeddings, location, limit)
    store = Store(location if settings.in_place else str(embeddings))
    found = find_embeddings(location, settings)
    tasks = plan_tasks(found, settings, limit)
    manifest = _manifest(found, settings, tasks)
    existing = _check_folder(store, manifest, settings, tasks, limit, overwrite=overwrite)
    return _plan(store, found, manifest if overwrite or existing is None else existing, tasks, settings)


def _require_settings(
    settings: AdoptSettings | None, embeddings: str | None, location: str, limit: int | None
) -> AdoptSettings:
    """Return the settings, after checking that they and the output folder fit together.

    Raises:
        SettingsError: an argument is missing or has no effect.
    """
    if settings is None:
        raise SettingsError("adopt: settings are needed, which say what made the embeddings (clip or not_clip)")
    if settings.in_place and embeddings is not None:
        raise SettingsError(f"--in-place writes a manifest into {location}; leave {embeddings} out")
    if not settings.in_place and embeddings is None:
        raise SettingsError("name a folder to write to, or leave the files where they are with --in-place")
    if embeddings is not None:
        inside = Store(embeddings).url.rstrip("/") + "/"
        if inside.startswith(Store(location).url.rstrip("/") + "/") and not settings.in_place:
            raise SettingsError(f"{embeddings} is inside {location}; write to a folder elsewhere")
    if settings.in_place and limit is not None:
        raise SettingsError(f"--limit {limit} has no effect with --in-place, which leaves the files as they are")
    return settings


def _check_folder(
    store: Store,
    manifest: Manifest,
    settings: AdoptSettings,
    tasks: list[AdoptTask],
    limit: int | None,
    *,
    overwrite: bool,
) -> Manifest | None:
    """Return the manifest of the output folder, after checking that `adopt` may write there.

    Raises:
        FolderError: the folder holds other work, embeddings that were adopted in place, or more rows than `limit`
            allows.
    """
    existing = check_stage(store, manifest, overwrite=overwrite, beside=settings.in_place)
    if existing is not None and not settings.in_place and IN_PLACE_FILES in existing.about:
        raise FolderError(f"{store.url} holds embeddings that were adopted in place; name another folder")
    more = set() if existing is None or overwrite else set(existing.shards) - {task.name for task in tasks}
    if more:
        raise FolderError(
            f"{store.url} holds shard {min(more)}, which is not in what would be adopted; leave --limit out, name "
            "the embeddings that it was adopted from, or use --overwrite to discard what is there"
        )
    shards = {} if existing is None or overwrite or limit is None else existing.shards
    for task in tasks:
        rows = sum(shards[task.name].counts.values()) if task.name in shards else 0
        if rows > task.rows:
            raise FolderError(
                f"{store.url} holds {rows:,} rows in shard {task.name}, of which --limit {limit} would leave "
                f"{task.rows:,}; leave --limit out, or use --overwrite to discard what is there"
            )
    return existing


def _manifest(found: Found, settings: AdoptSettings, tasks: list[AdoptTask]) -> Manifest:
    """Return a new manifest for the output folder, without shards."""
    described = None
    if settings.clip is not None:
        from ..clip.encoder import check_clip, clip_source, embedding_size  # takes seconds to import

        check_clip(settings.clip)
        described = clip_source(settings.clip)
        size = embedding_size(settings.clip)
        for space in (found.target, found.source):
            if space is not None and size not in (None, space.size):
                raise InputError(
                    f"--clip {settings.clip.model} makes embeddings of {size} values, those of {space.name} have "
                    f"{space.size}; name the CLIP that made them, or --not-clip NAME"
                )
        _refuse_other_roles(found)
    identity = settings.manifest_settings(described)
    identity["spaces"] = {role: None if space is None else space.name for role, space in _spaces(found)}
    return Manifest(STAGE, identity, input={"shards": len(tasks)})


def _refuse_other_roles(found: Found) -> None:
    """Check that, with a CLIP, the source is not named like images, nor the target like text.

    A prior with a CLIP encodes captions with its text tower, so its source must be text embeddings. Both spaces have
    the same size.

    Raises:
        SettingsError: the roles are reversed.
    """
    if found.source is None:
        return
    if role_of(found.source.name) == "target" or role_of(found.target.name) == "source":
        raise SettingsError(
            f"--clip: the source would be {found.source.name} and the target {found.target.name}, but a CLIP's prior "
            "goes from text to images; use --not-clip NAME for another direction"
        )
    if found.source.size != found.target.size:
        raise InputError(
            f"{found.source.name} holds embeddings of {found.source.size} values, {found.target.name} of "
            f"{found.target.size}, so they are not of one CLIP; use --not-clip NAME"
        )


def _spaces(found: Found) -> list[tuple[str, Space | None]]:
    return [("source", found.source), ("target", found.target)]


def _about(found: Found, settings: AdoptSettings, files: Mapping[str, Mapping[str, str]] | None) -> dict[str, Any]:
    """Return what the manifest says about the embeddings: the CLIP, the spaces, and the files adopted in place."""
    spaces = {
        role: {"role": role, "name": space.name, "size": space.size, "files": kind, "dtypes": list(space.dtypes)}
        for (role, space), kind in zip(_spaces(found), ("text_emb", "img_emb"), strict=True)
        if space is not None
    }
    about: dict[str, Any] = {"spaces": spaces}
    if settings.clip is not None:
        from ..clip.encoder import clip_location, clip_source

        # no weights are loaded, so the identity has no hash of them
        about["clip"] = {"source": clip_source(settings.clip), "embed_dim": found.target.size, "declared": True}
        about["clip_settings"] = clip_location(settings.clip)
    else:
        about["not_clip"] = settings.not_clip
    if files is not None:
        about[IN_PLACE_FILES] = files
    return about


def _plan(store: Store, found: Found, manifest: Manifest, tasks: list[AdoptTask], settings: AdoptSettings) -> StagePlan:
    names = set(pending_shards(store, manifest, {task.name: task.input for task in tasks}))
    rows = sum(task.rows for task in tasks if task.name in names)
    values = found.target.size + (0 if found.source is None else found.source.size)
    size = rows * (2 * values + _METADATA_BYTES)
    return StagePlan(
        stage=STAGE,
        folder=store.url,
        units=len(tasks),
        pending_units=len(names),
        unit="shards",
        pending_rows=rows,
        bytes_needed=0 if settings.in_place else size,
        bytes_free=free_bytes(store),
        seconds=size / _ASSUMED_BYTES_PER_SECOND,
    )


def _statistics(store: Store, found: Found, tasks: list[AdoptTask]) -> dict[str, Any]:
    """Return name, size, dtypes and norms of each space, by role. Norms are those before normalisation."""
    logs = [store.read_json(stats_name(task.name)) for task in tasks]
    statistics: dict[str, Any] = {}
    for (role, space), kind in zip(_spaces(found), ("text_emb", "img_emb"), strict=True):
        if space is None:
            continue
        norms = [log["norms"][kind] for log in logs if log["norms"].get(kind)]
        rows = sum(each["rows"] for each in norms)
        statistics[role] = {
            "name": space.name,
            "size": space.size,
            "dtypes": list(space.dtypes),
            "norm_min": min((each["low"] for each in norms), default=None),
            "norm_mean": sum(each["total"] for each in norms) / rows if rows else None,
            "norm_max": max((each["high"] for each in norms), default=None),
        }
    return statistics


def _describe(statistics: Mapping[str, Any]) -> list[str]:
    """Return one line for each space, with its dtype and norms."""
    return [
        f"{role} {each['name']}: {each['size']} values of {' and '.join(each['dtypes'])}, norms "
        f"{each['norm_min']:.4g} to {each['norm_max']:.4g}, {each['norm_mean']:.4g} on average"
        for role, each in statistics.items()
        if each["norm_mean"] is not None
    ]


def _notes(found: Found, settings: AdoptSettings) -> list[str]:
    """Return notes about what is missing or was left out."""
    notes = list(found.notes)
    if found.source is None and settings.clip is None:
        notes.append("there is no source, so no prior can be trained: adopt again with --source")
    elif found.source is None:
        notes.append(
            "there is no source: a prior can be trained only with captions (train.text_condition=online); name a "
            "source with --source"
        )
    table = found.sets[0].table
    if table is None:
        notes.append("there is no metadata: keys are made from file names and row numbers")
    elif not settings.in_place:
        columns = choose_columns(table, settings)
        used = [f"{name} from {columns.names[name]!r}" for name in ("key", "caption") if name in columns.names]
        notes.append(f"metadata: {', '.join(used) or 'neither keys nor captions'}")
        embeds = {part.column for part in found.sets[0].parts.values()}
        if left_out := [name for name in columns.left_out if name not in embeds]:
            notes.append(f"columns left out, because they hold embeddings or bytes: {', '.join(left_out)}")
    return notes

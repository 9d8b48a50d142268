"""The `priorkit adopt` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    WorkersOption,
    expand_path,
    show_plan,
    show_result,
)


def adopt(
    location: Annotated[
        str,
        typer.Argument(metavar="SRC", help="Folder or file of embeddings, local or remote.", callback=expand_path),
    ],
    embeddings: Annotated[
        Optional[str],
        typer.Argument(
            metavar="DST", help="Folder to write embedding shards to.", show_default=False, callback=expand_path
        ),
    ] = None,
    source: Annotated[
        Optional[str],
        typer.Option(
            show_default="the one named like text", help="Source: a folder, column or array.", callback=expand_path
        ),
    ] = None,
    target: Annotated[
        Optional[str],
        typer.Option(
            show_default="the one named like images", help="Target: a folder, column or array.", callback=expand_path
        ),
    ] = None,
    metadata: Annotated[
        Optional[str],
        typer.Option(
            show_default="the tables in SRC",
            help="Folder or file of tables with captions, or none.",
            callback=expand_path,
        ),
    ] = None,
    key_column: Annotated[
        Optional[str], typer.Option(show_default="key, uid, id ...", help="Column of a table that identifies a row.")
    ] = None,
    caption_column: Annotated[
        Optional[str], typer.Option(show_default="caption, text ...", help="Column of a table with the captions.")
    ] = None,
    clip: Annotated[
        Optional[str],
        typer.Option(help="CLIP that made the embeddings: an open_clip model, hf-hub:ID or local-dir:PATH."),
    ] = None,
    clip_pretrained: Annotated[
        Optional[str], typer.Option(help="open_clip tag or path of the weights of --clip.")
    ] = None,
    not_clip: Annotated[
        Optional[str], typer.Option(metavar="NAME", help="Name of what made the embeddings, if it is not a CLIP.")
    ] = None,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Scale embeddings to norm 1, and keep their norms.")
    ] = False,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out missing, zero and infinite embeddings, and list them.")
    ] = False,
    rows_per_shard: Annotated[
        Optional[int], typer.Option(min=1, show_default="1000000", help="Most rows of a shard.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Write a manifest into SRC, and leave its files as they are.")
    ] = False,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn embeddings that other programs made into a folder that train, evaluate and sample read.

    Example: priorkit adopt old new --clip RN50 --clip-pretrained openai
    """
    from ..display.terminal import progress_bar, reported_errors

    with reported_errors():
        from ..adopt.settings import AdoptSettings
        from ..adopt.stage import adopt as run_adopt
        from ..adopt.stage import plan_adopt
        from ..compute.settings import ComputeSettings
        from ..errors import SettingsError
        from ..settings import parse_settings

        if clip is None and clip_pretrained is not None:
            raise SettingsError(f"--clip-pretrained {clip_pretrained}: name its model with --clip")
        model = None if clip is None else {"model": clip, "pretrained": clip_pretrained}
        values = {
            "source": source, "target": target, "metadata": metadata, "key_column": key_column,
            "caption_column": caption_column, "clip": model, "not_clip": not_clip, "normalise": normalise,
            "skip_invalid": skip_invalid, "rows_per_shard": rows_per_shard, "in_place": in_place,
        }  # fmt: skip
        given = {name: value for name, value in values.items() if value not in (None, False)}
        settings = parse_settings(AdoptSettings, given, "adopt")
        if dry_run:
            show_plan(plan_adopt(location, embeddings, settings, limit=limit, overwrite=overwrite), as_json)
            return
        compute = ComputeSettings() if workers is None else ComputeSettings(backend="ray", workers=workers)
        with progress_bar("adopt", "shards", quiet=as_json) as progress:
            result = run_adopt(
                location, embeddings, settings,
                compute=compute, limit=limit, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        show_result(result, as_json)

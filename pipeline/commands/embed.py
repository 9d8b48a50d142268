"""The `priorkit embed` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import (
    DryRunOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    SetOption,
    WorkersOption,
    command_settings,
    expand_path,
    show_plan,
    show_result,
)


def embed(
    images: Annotated[
        str,
        typer.Argument(
            help="Folder of tars, of files, or of tables; one tar or table; or a pattern of several.",
            callback=expand_path,
        ),
    ] = "data/images",
    embeddings: Annotated[
        str, typer.Option(help="Folder to write embedding shards to.", callback=expand_path)
    ] = "data/embeddings",
    model: Annotated[
        Optional[str], typer.Option(show_default="ViT-B-32", help="ViT-L-14, ViT-L/14, hf_clip:ID or local-dir:PATH.")
    ] = None,
    pretrained: Annotated[
        Optional[str], typer.Option(show_default="laion2b_s34b_b79k", help="open_clip tag or path of the weights.")
    ] = None,
    batch_size: Annotated[Optional[int], typer.Option(show_default="64", help="Pairs in one forward pass.")] = None,
    device: Annotated[Optional[str], typer.Option(show_default="auto", help="auto, cpu or cuda.")] = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    limit: LimitOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Embed images and captions with a CLIP model, skipping shards that are complete.

    Example: priorkit embed --model ViT-L-14 --pretrained laion2b_s32b_b82k --device cuda
    """
    from ..display.terminal import progress_bar, reported_errors

    with reported_errors():
        from ..embed.stage import embed as run_embed
        from ..embed.stage import plan_embed

        options = {
            "embed.clip.model": model,
            "embed.clip.pretrained": pretrained,
            "embed.batch_size": batch_size,
            "embed.device": device,
        }
        chosen = command_settings("embed", settings, options, workers)
        if dry_run:
            plan = plan_embed(
                images, embeddings, chosen.embed, compute=chosen.compute, limit=limit, overwrite=overwrite
            )
            show_plan(plan, as_json)
            return
        with progress_bar("embed", "shards", quiet=as_json) as progress:
            result = run_embed(
                images, embeddings, chosen.embed,
                compute=chosen.compute, limit=limit, overwrite=overwrite, progress=progress,
            )  # fmt: skip
        show_result(result, as_json)

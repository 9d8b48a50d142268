"""The `convert` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, OverwriteOption, expand_path
from .options import CheckpointConfigOption, FunctionOption, WeightsOption


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A .pth of dalle2-pytorch, a prior or pipeline of diffusers, or a folder of a trained prior.",
            callback=expand_path,
        ),
    ],
    destination: Annotated[
        str, typer.Argument(help="Folder to write, or a .pth for dalle2-pytorch 1.15.6.", callback=expand_path)
    ],
    config: CheckpointConfigOption = None,
    weights: WeightsOption = "ema",
    function_version: FunctionOption = None,
    clip: Annotated[
        Optional[str], typer.Option(help="open_clip model that the prior belongs to.", show_default=False)
    ] = None,
    clip_pretrained: Annotated[
        Optional[str], typer.Option(help="Tag or file of that model's weights.", show_default=False)
    ] = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert a prior of dalle2-pytorch or diffusers to a prior folder, or a prior folder to a checkpoint.

    Example: priorkit convert prior.pth data/prior --config laion-model-card
    """
    from ...pipeline.display.terminal import print_json, print_line, reported_errors

    with reported_errors():
        from ..interchange.load import convert as convert_prior
        from ..interchange.load import find_clip

        clip_settings = find_clip(clip, clip_pretrained)
        convert_prior(
            source, destination, overwrite=overwrite,
            config=config, weights=weights, function_version=function_version, clip=clip_settings,  # type: ignore[arg-type]
        )  # fmt: skip
        if as_json:
            print_json({"source": source, "destination": destination})
        else:
            print_line(f"wrote {destination}")

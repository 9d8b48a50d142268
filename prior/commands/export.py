"""The `export` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from ...pipeline.commands.options import JsonOption, OverwriteOption, expand_path
from .options import WeightsOption


def export(
    prior: Annotated[
        str, typer.Argument(help="Folder of a trained prior, with a prior-transformer network.", callback=expand_path)
    ],
    folder: Annotated[str, typer.Argument(help="Folder to write.", callback=expand_path)],
    format: Annotated[str, typer.Option(help="diffusers.")] = "diffusers",
    dtype: Annotated[str, typer.Option(help="Precision of the weights: float32 or float16.")] = "float32",
    weights: WeightsOption = "ema",
    merge: Annotated[bool, typer.Option("--merge", help="Merge trained adapters (LoRA) into the weights.")] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a prior to a folder that diffusers loads.

    Example: priorkit export data/prior exported --dtype float16
    """
    from ...pipeline.display.terminal import print_json, print_line, reported_errors

    with reported_errors():
        from ..interchange.export import export as export_prior

        files = export_prior(
            prior, folder, format=format, dtype=dtype, weights=weights,  # type: ignore[arg-type]
            merge=merge, overwrite=overwrite,
        )  # fmt: skip
        if as_json:
            print_json({"prior": prior, "folder": folder, "format": format, "dtype": dtype, "files": files})
        else:
            print_line(f"wrote {folder}: {', '.join(files)}")

"""Command-line options shared by several commands."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import expand_path

CheckpointConfigOption = Annotated[
    Optional[str],
    typer.Option(
        "--config",
        help="Settings of a .pth: the JSON of its training script, or laion-model-card.",
        show_default=False,
        callback=expand_path,
    ),
]
WeightsOption = Annotated[str, typer.Option(help="ema, online, or of a prior trained here best.")]
FunctionOption = Annotated[
    Optional[str],
    typer.Option(help="dalle2-pytorch release whose function a .pth is, if not the stored one.", show_default=False),
]

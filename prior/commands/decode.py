"""The `decode` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, expand_path


def decode(
    embeds: Annotated[
        str, typer.Argument(help="A .safetensors of `priorkit sample --for DECODER`.", callback=expand_path)
    ],
    pipeline: Annotated[
        str,
        typer.Option(
            help="The decoder's pipeline: a folder, or ORG/NAME on the hub.", show_default=False, callback=expand_path
        ),
    ],
    target: Annotated[
        Optional[str],
        typer.Option(
            "--for",
            help="kandinsky-2.2, kandinsky-2.1, karlo, stable-unclip or ip-adapter.",
            show_default="the file's",
        ),
    ] = None,
    output: Annotated[
        str,
        typer.Option(help="A .png for one grid, or a folder, ending in /, for one PNG each.", callback=expand_path),
    ] = "pictures.png",
    steps: Annotated[Optional[int], typer.Option(help="Denoising steps.", show_default="the pipeline's")] = None,
    guidance_scale: Annotated[
        Optional[float], typer.Option(help="1 turns guidance off.", show_default="the pipeline's")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")] = 0,
    size: Annotated[
        Optional[int], typer.Option(help="Width and height in pixels.", show_default="the pipeline's")
    ] = None,
    limit: Annotated[Optional[int], typer.Option(min=1, help="Draw the first N rows only.")] = None,
    batch_size: Annotated[
        Optional[int],
        typer.Option(min=1, help="Pictures drawn at the same time; ip-adapter draws one.", show_default="4"),
    ] = None,
    prompts: Annotated[
        Optional[bool],
        typer.Option(
            "--prompts/--no-prompts",
            help="Give the decoder the prompts too, or empty ones.",
            show_default="the decoder's",
        ),
    ] = None,
    noise_level: Annotated[
        Optional[int], typer.Option(help="Noise added to the embeddings, for stable-unclip.", show_default="0")
    ] = None,
    ip_adapter: Annotated[
        Optional[str],
        typer.Option(
            help="Weights for ip-adapter: a file, or ORG/NAME/FILE on the hub.",
            show_default=False,
            callback=expand_path,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    as_json: JsonOption = False,
) -> None:
    """Draw a picture for each sampled embedding, with a decoder of diffusers.

    Example: priorkit decode corgi.safetensors --pipeline models/kandinsky22
    """
    from ...pipeline.display.terminal import print_json, print_line, print_notes, progress_bar, reported_errors

    with reported_errors():
        from ...pipeline.settings import parse_settings
        from ..decode.settings import DecodeSettings
        from ..decode.stage import decode as decode_file

        given = {
            "steps": steps, "guidance_scale": guidance_scale, "seed": seed, "size": size, "limit": limit,
            "batch_size": batch_size, "prompts": prompts, "noise_level": noise_level, "ip_adapter": ip_adapter,
            "device": device, "dtype": dtype,
        }  # fmt: skip
        settings = parse_settings(DecodeSettings, given, "options")
        with progress_bar("decode", "pictures", quiet=as_json) as progress:
            done = decode_file(embeds, pipeline, output, settings, target=target, progress=progress)
        if as_json:
            print_json(done.to_json())
            return
        print_notes(done.notes)
        print_line(f"wrote {done.output}: {done.pictures} pictures of {done.size} x {done.size} pixels")

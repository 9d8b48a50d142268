"""The `sample` command. Heavy modules are imported only when the command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ...pipeline.commands.options import JsonOption, expand_path
from .options import CheckpointConfigOption, FunctionOption, WeightsOption


def sample(
    prior: Annotated[
        str,
        typer.Argument(
            help="Folder of a trained prior or of diffusers, or a .pth of dalle2-pytorch.", callback=expand_path
        ),
    ],
    captions: Annotated[Optional[list[str]], typer.Argument(help="One or more captions.", show_default=False)] = None,
    prompts: Annotated[
        Optional[str],
        typer.Option(help="Text file with a caption in every line.", show_default=False, callback=expand_path),
    ] = None,
    embeddings: Annotated[
        Optional[str],
        typer.Option(
            help="Stored text embeddings: folder of embedding shards, or .npy.",
            show_default=False,
            callback=expand_path,
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="File to write: .npy or .safetensors.", callback=expand_path)] = Path(
        "samples.npy"
    ),
    num_candidates: Annotated[int, typer.Option(min=1, help="Draws for each caption; the nearest to it is kept.")] = 2,
    guidance_scale: Annotated[float, typer.Option(help="1 follows the text as trained.")] = 1.0,
    guidance: Annotated[str, typer.Option(help="text, or dalle2 as in dalle2-pytorch.")] = "text",
    steps: Annotated[int, typer.Option(min=1, help="Network evaluations.")] = 64,
    sampler: Annotated[
        str, typer.Option(help="ddim, ddpm, dpmsolver++, dalle2-ddim, unclip, unclip-ddpm or one-step.")
    ] = "ddim",
    negative_prompt: Annotated[
        Optional[str],
        typer.Option(help="Caption that guidance moves away from, in place of the empty text.", show_default=False),
    ] = None,
    target: Annotated[
        Optional[str],
        typer.Option(
            "--for",
            help="Consumer that sets norm and shape: kandinsky-2.2, kandinsky-2.1, karlo, stable-unclip, ip-adapter, "
            "dalle2-pytorch or clip-retrieval.",
            show_default=False,
        ),
    ] = None,
    norm: Annotated[
        Optional[str],
        typer.Option(
            help="unit, or raw as the CLIP gives them; by default raw if the prior predicts norms.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of large matrix products: float32 or bfloat16.")] = "float32",
    lora: Annotated[
        Optional[str],
        typer.Option(help="File of adapters (LoRA) to add to the prior.", show_default=False, callback=expand_path),
    ] = None,
    config: CheckpointConfigOption = None,
    weights: WeightsOption = "ema",
    function_version: FunctionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sample a CLIP image embedding for each caption.

    Example: priorkit sample data/prior "a corgi in sunglasses" --output corgi.npy
    """
    from ...pipeline.display.terminal import (
        print_json,
        print_line,
        print_notes,
        print_table,
        progress_bar,
        reported_errors,
    )

    with reported_errors():
        from ...pipeline.compute.device import choose_device
        from ...pipeline.errors import SettingsError
        from ..interchange.load import load_prior
        from ..model.export import check_output
        from ..model.sample_file import sample_to_file
        from ..model.texts import CaptionFile, Captions, Texts, stored_texts

        if sum(source is not None for source in (captions or None, prompts, embeddings)) != 1:
            raise SettingsError("give one of: captions, --prompts FILE, --embeddings FOLDER")
        check_output(output)
        texts: Texts = (
            CaptionFile(prompts) if prompts is not None
            else stored_texts(embeddings) if embeddings is not None
            else Captions(captions or [])
        )  # fmt: skip
        model = load_prior(
            prior, choose_device(device, "--device"), dtype,
            config=config, weights=weights, function_version=function_version, lora=lora,  # type: ignore[arg-type]
        )  # fmt: skip
        with progress_bar("sample", "captions", quiet=as_json or texts.count <= 1) as progress:
            done = sample_to_file(
                model, texts, output, target=target, progress=progress, num_candidates=num_candidates,
                guidance_scale=guidance_scale, guidance=guidance, steps=steps, sampler=sampler, seed=seed, norm=norm,
                negative_prompt=negative_prompt,
            )  # fmt: skip
        if as_json:
            print_json({"output": str(output), **done.to_json()})
            return
        rows = [(label, f"{cosine:.4f}") for label, cosine in zip(done.labels, done.cosine_to_text, strict=False)]
        if rows:
            shown = "" if len(rows) == texts.count else f" (first {len(rows)} of {texts.count:,})"
            print_table(f"samples{shown}", ("caption", "cosine to its text"), rows)
            print_line(f"mean cosine to the text: {done.mean_cosine_to_text:.4f}")
        print_notes(done.notes)
        print_line(f"wrote {output}: float32 {list(done.shape)}")

"""Write `goldens/unclip.safetensors`: weights, inputs and outputs of priors of the installed diffusers.

    python tests/parity/make_unclip_goldens.py

The file holds, for each config NAME of `CONFIGS`:

- `NAME/weights/...`: the state_dict of diffusers' `PriorTransformer`
- `NAME/text_embed [B, S]`, `NAME/token_states [B, T, D]` padded with zeros
- `NAME/timesteps [B]`, `NAME/noise [8, B, D]`
- `NAME/empty_text_embed [S]`, `NAME/empty_token_states [T', D]`
- `NAME/prediction [B, D]`: the network's output for the first noise
- `NAME/sample [B, D]`: the image embeddings after 7 steps of `UnCLIPScheduler` at guidance scale 4

The metadata holds the configs, the clip range, and the version of diffusers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch
import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from unclip import randomise

FILE = Path(__file__).resolve().parent / "goldens/unclip.safetensors"
STEPS, SCALE, CLIP_RANGE = 7, 4.0, 0.5
BATCH, EMPTY_STATES = 3, 2
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": SMALL,
    "odd": {**SMALL, "num_attention_heads": 3, "attention_head_dim": 5, "num_layers": 1, "num_embeddings": 77},
    "norms": {**SMALL, "norm_in_type": "layer", "embedding_proj_norm_type": "layer", "time_embed_act_fn": "gelu"},
    "sizes": {**SMALL, "embedding_proj_dim": 10, "time_embed_dim": 20, "time_embed_act_fn": "mish"},
    "deep": {**SMALL, "num_layers": 4, "num_embeddings": 20, "time_embed_act_fn": "relu"},
}


def make_model(config: dict[str, Any], generator: torch.Generator) -> PriorTransformer:
    """Return a model with random weights."""
    model = PriorTransformer(**config).eval().requires_grad_(False)
    randomise(model, generator)
    return model


def make_inputs(config: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Captions of 1, 5 and all token states, and noise."""
    dim, most = config["embedding_dim"], config["num_embeddings"]

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    given = torch.arange(most) < torch.tensor([1, 5, most])[:, None]
    text_dim = config.get("embedding_proj_dim") or dim
    return {
        "text_embed": 3 * normal(BATCH, text_dim),
        "token_states": normal(BATCH, most, dim) * given[..., None],
        "timesteps": torch.randint(0, 1000, (BATCH,), generator=generator),
        "noise": normal(STEPS + 1, BATCH, dim),
        "empty_text_embed": 3 * normal(text_dim),
        "empty_token_states": normal(EMPTY_STATES, dim),
    }


def sample(model: PriorTransformer, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loop of `KandinskyV22PriorPipeline`, with the noise of `inputs`."""
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=CLIP_RANGE)
    scheduler.set_timesteps(STEPS)
    states = inputs["token_states"]
    padding = (0, 0, 0, states.shape[1] - EMPTY_STATES)
    empty = F.pad(inputs["empty_token_states"], padding).expand_as(states)
    text = torch.cat([inputs["empty_text_embed"].expand(BATCH, -1), inputs["text_embed"]])
    both = torch.cat([empty, states])
    mask = (both != 0).any(dim=-1)
    noise = iter(inputs["noise"])
    latents = next(noise) * scheduler.init_noise_sigma
    for index, timestep in enumerate(scheduler.timesteps):
        output = model(torch.cat([latents] * 2), timestep, text, both, mask).predicted_image_embedding
        without, known = output.chunk(2)
        last = index + 1 == STEPS
        prediction = without + SCALE * (known - without)
        scheduler_noise = None if last else next(noise)
        latents = step(scheduler, prediction, timestep, latents, scheduler_noise, scheduler.timesteps[index + 1 :])
    return model.post_process_latents(latents)  # type: ignore[no-any-return]


def step(
    scheduler: UnCLIPScheduler,
    prediction: torch.Tensor,
    timestep: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor | None,
    later: torch.Tensor,
) -> torch.Tensor:
    """A step of the scheduler that adds the given noise instead of random noise."""
    from diffusers.schedulers import scheduling_unclip

    drawn = scheduling_unclip.randn_tensor
    scheduling_unclip.randn_tensor = lambda *_, **__: noise  # type: ignore[assignment]
    try:
        before = later[0] if len(later) else None
        result = scheduler.step(prediction, timestep=timestep, sample=latents, prev_timestep=before)
    finally:
        scheduling_unclip.randn_tensor = drawn
    return result.prev_sample  # type: ignore[no-any-return]


def main() -> None:
    tensors: dict[str, torch.Tensor] = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        generator = torch.Generator().manual_seed(seed)
        model, inputs = make_model(config, generator), make_inputs(config, generator)
        states = inputs["token_states"]
        prediction = model(
            inputs["noise"][0], inputs["timesteps"], inputs["text_embed"], states, (states != 0).any(dim=-1)
        ).predicted_image_embedding
        outputs = {"prediction": prediction, "sample": sample(model, inputs)}
        weights = {f"weights/{key}": value for key, value in model.state_dict().items()}
        for key, value in {**weights, **inputs, **outputs}.items():
            tensors[f"{name}/{key}"] = value.contiguous()
    about = {"configs": CONFIGS, "clip_range": CLIP_RANGE, "diffusers": diffusers.__version__}
    safetensors.torch.save_file(tensors, FILE, {"about": json.dumps(about)})


if __name__ == "__main__":
    main()

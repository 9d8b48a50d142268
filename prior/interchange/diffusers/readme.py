"""README.md of a folder that is exported for diffusers."""

from __future__ import annotations

from ...model.config import PriorConfig
from ...model.text_encoder import clip_named
from .settings import transformer_network

README_NAME = "README.md"
_CLIP_LENGTH = 77
"""Number of tokens to which the tokenizer of a CLIP pads captions."""
_PIPELINE = """# A prior for diffusers

Exported by priorkit. The folder holds the prior and its scheduler. A pipeline also needs the CLIP that the prior was
trained with, in the format of transformers:
{clip}.

Pass the CLIP's four components, `text_encoder`, `tokenizer`, `image_encoder` and `image_processor`:

```python
import torch
import transformers as t
from diffusers import KandinskyV22PriorPipeline

folder, clip, dtype = "FOLDER OF THIS FILE", "FOLDER OR HUB NAME OF THE CLIP", torch.{dtype}
pipeline = KandinskyV22PriorPipeline.from_pretrained(
    folder,
    text_encoder=t.CLIPTextModelWithProjection.from_pretrained(clip, projection_dim={text}, dtype=dtype),
    image_encoder=t.CLIPVisionModelWithProjection.from_pretrained(clip, projection_dim={image}, dtype=dtype),
    tokenizer=t.CLIPTokenizer.from_pretrained(clip{length}),
    image_processor=t.CLIPImageProcessor.from_pretrained(clip),
    torch_dtype=dtype,
)
{lora}out = pipeline(["a corgi"], num_inference_steps=25, guidance_scale={scale})
out.image_embeds, out.negative_image_embeds  # for a decoder that was trained with this CLIP
```

The prior alone: `diffusers.PriorTransformer.from_pretrained(folder, subfolder="prior")`.
"""
_ONE_STEP = """# A prior for ECLIPSE's class

Exported by priorkit in the layout of [ECLIPSE](https://github.com/eclipse-t2i/eclipse-inference), whose class
`PriorTransformer` has no timestep. The class of the same name in diffusers cannot load it. Run the prior with ECLIPSE's
`KandinskyPriorPipeline` and the CLIP that the prior was trained with:
{clip}.

```python
import torch
from src.priors.prior_transformer import PriorTransformer

prior = PriorTransformer.from_pretrained("FOLDER OF THIS FILE", torch_dtype=torch.{dtype})
```
"""
_LORA = """pipeline.prior.load_lora_adapter(
    f"{folder}/prior", weight_name="pytorch_lora_weights.safetensors", prefix=None
)  # the folder's weights are those that training started from
"""
"""Lines that load the adapters."""


def readme(config: PriorConfig, dtype: str, has_adapters: bool = False) -> str:
    """Return the content of README.md: the lines of Python that load the folder, and what to pass.

    Args:
        dtype: name of the dtype of the weights.
        has_adapters: True if the folder has a file of adapters, which are not merged into the weights.
    """
    name = clip_named(config.clip_settings)
    clip = f"{name} in the names of open_clip" if name else "one that this prior does not name"
    text = _PIPELINE if transformer_network(config).time_token else _ONE_STEP
    # a prior that was not trained to drop texts supports no guidance
    scale = "4.0" if config.diffusion.text_drop else "1.0"
    # diffusers' class takes exactly as many token states as it has positions for
    states = config.network.max_token_states
    length = "" if states == _CLIP_LENGTH else f", model_max_length={states}"
    image, text_dim = config.embed_dim, config.text_dim or config.embed_dim
    return text.format(
        clip=clip,
        dtype=dtype,
        scale=scale,
        image=image,
        text=text_dim,
        length=length,
        lora=_LORA if has_adapters else "",
    )

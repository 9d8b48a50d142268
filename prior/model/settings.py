"""Names of the weights of a trained prior, and of the consumers of its samples."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Name that selects which of a prior's weights to load.

- `ema`: the exponential moving average of the weights
- `online`: the weights that the optimiser updates
- `best`: the averaged weights with the lowest validation loss
"""
TargetName = Literal[
    "kandinsky-2.2", "kandinsky-2.1", "karlo", "stable-unclip", "ip-adapter", "dalle2-pytorch", "clip-retrieval"
]
"""Name of a consumer of sampled embeddings: a decoder, or `clip-retrieval` for a search index of image embeddings."""

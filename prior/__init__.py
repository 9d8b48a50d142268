"""Training, evaluation and sampling of diffusion priors over CLIP embeddings.

Letters in shapes: B batch, D size of an embedding, T token states, W width of a token state, C width of the network,
H attention heads, P tokens of the prefix, K draws, N rows of a split.
"""

from ..pipeline.compute.openmp import stop_spinning

stop_spinning()  # must run before torch is imported, and any module of this package may import it first

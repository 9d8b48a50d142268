"""Training, evaluation and sampling of diffusion priors for CLIP embeddings.

Letters in tensor shapes: B batch size, D embedding size, T token states, W token state width, C network width,
H attention heads, P prefix tokens, K draws, N rows in a split.
"""

from ..pipeline.compute.openmp import stop_spinning

stop_spinning()  # must run before torch is first imported, which any module in this package may do

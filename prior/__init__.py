"""Training, evaluation and sampling of diffusion priors for CLIP embeddings.

Letters in tensor shapes: B batch size, D embedding size, T number of token states, W token state width, C network
width, H number of attention heads, P number of prefix (text) tokens, K number of draws per text, N number of rows in a
training, validation or test split. A module that uses a letter differently defines the letter in its own docstring.
"""

from ..pipeline.compute.openmp import stop_spinning

stop_spinning()  # must run before torch is first imported, and any module in this package may import it

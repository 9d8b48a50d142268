"""From batches of embeddings to a trained, evaluated prior and its samples.

Letters in shapes: B batch, D size of an embedding, T token states, W width of a token state, C width of the network,
H attention heads, P tokens of the prefix, K draws, N rows of a split.
"""

from ..pipeline.compute.openmp import stop_spinning

stop_spinning()  # here, since a module of ours may be the first to import torch

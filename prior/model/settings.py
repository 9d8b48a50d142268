"""Names that select the weights to load from a trained prior."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Name that selects which of a prior's weights to load.

- `ema`: the exponential moving average of the weights
- `online`: the weights that the optimiser updates
- `best`: the averaged weights with the lowest validation loss
"""

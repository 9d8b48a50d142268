"""Names of the sets of weights that a trained prior can have."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Name of a set of weights.

`ema` selects the averaged weights, `online` the weights that the optimiser updates, and `best` the averaged weights
with the lowest validation loss.
"""

"""Types of settings that select weights."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Name of a set of weights: `ema` for the averaged weights, `online` for the weights that the optimiser updates, `best`
for the averaged weights with the lowest validation loss."""

"""Type of the settings that select a set of weights."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Name of a set of weights.

`ema` is the averaged weights, `online` is the weights that the optimiser updates, and `best` is the averaged weights
with the lowest validation loss.
"""

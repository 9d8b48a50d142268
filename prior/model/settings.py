"""Types of settings that select weights."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Weights in a prior's folder: averaged, as trained, or averaged with the lowest validation loss."""

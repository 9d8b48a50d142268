"""Settings that name weights."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]
"""Weights of a prior's folder: averaged, as trained, or the averaged ones with the lowest validation loss."""

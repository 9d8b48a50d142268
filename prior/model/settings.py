"""Names of the weights that a prior's folder holds."""

from typing import Literal

WeightsName = Literal["ema", "online", "best"]

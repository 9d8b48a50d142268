"""Network families, and the type of a setting that may contain the settings of any family."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from ...pipeline.settings import UNKNOWN_CHOICE
from .family import FamilySettings
from .prior_transformer.settings import PriorTransformerSettings
from .settings import NetworkSettings

FAMILIES: dict[str, type[FamilySettings]] = {
    "causal-transformer": NetworkSettings,
    "prior-transformer": PriorTransformerSettings,
}
"""Settings classes, by name of the network family."""
DEFAULT_FAMILY = "causal-transformer"
"""Family of settings that do not name one."""


def _family_of(value: Any) -> str | None:
    """Return the family of network settings, given as a mapping or as an instance; None if it is not a name."""
    if not isinstance(value, dict):
        return getattr(value, "family", DEFAULT_FAMILY)  # the class of the default reports that it is no mapping
    family = value.get("family", DEFAULT_FAMILY)
    return family if isinstance(family, str) and family in FAMILIES else None


AnyNetworkSettings = Annotated[
    Annotated[NetworkSettings, Tag("causal-transformer")]
    | Annotated[PriorTransformerSettings, Tag("prior-transformer")],
    Discriminator(
        _family_of,
        custom_error_type=UNKNOWN_CHOICE,
        custom_error_message=f"unknown family; known are {', '.join(FAMILIES)}",
    ),
]
"""Settings of a network of any family."""

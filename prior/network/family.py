"""Base class for the settings of network families, with the properties that other packages check."""

from __future__ import annotations

from typing import ClassVar

from ...pipeline.settings import Settings
from .function_version import FunctionVersion


class FamilySettings(Settings):
    """Settings of one network family, such as `causal-transformer`.

    The properties describe what every network with these settings can do, so that settings can be checked before a
    network is built.
    """

    selector: ClassVar[str | None] = "family"

    family: str
    """Name of the network family."""

    @property
    def max_token_states(self) -> int:
        """Maximum number of token states (per-token text-encoder outputs) per caption; 0 if none are used."""
        raise NotImplementedError

    @property
    def needs_token_states(self) -> bool:
        """True if the network cannot work without token states."""
        return False

    @property
    def text_tokens(self) -> int:
        """Maximum number of tokens that the text of a caption takes in the network."""
        raise NotImplementedError

    @property
    def draw_tokens(self) -> int:
        """Number of tokens that a draw (a noisy image embedding) takes in the network, with the timestep's."""
        raise NotImplementedError

    @property
    def evaluations(self) -> float:
        """Mean number of evaluations of the network per draw in training."""
        return 1.0

    @property
    def function(self) -> FunctionVersion | None:
        """DALLE2-pytorch release that the network reproduces; None if it is not a network of DALLE2-pytorch."""
        return None

    @property
    def takes_raw_text(self) -> bool:
        """True if text embeddings must not be normalised; False if they must have norm 1."""
        return False

    @property
    def needs_empty_text(self) -> bool:
        """True if the CLIP's encoding of the empty text stands for a dropped text."""
        return False

    @property
    def uses_time(self) -> bool:
        """True if the prediction depends on the timestep. If not, the network can only be evaluated once per sample."""
        return True

    @property
    def drops_text(self) -> bool:
        """True if something can stand for a dropped text, so that guidance and `text_drop` are possible."""
        return False

    @property
    def drops_pooled_text(self) -> bool:
        """True if a dropped text also drops the pooled text embedding, and not only the token states."""
        return self.drops_text

    @property
    def drops_image(self) -> bool:
        """True if something can stand for a dropped noisy image, so that `image_drop` is possible."""
        return False

    @property
    def most_timesteps(self) -> int | None:
        """Maximum number of timesteps in the noise schedule; None for no limit."""
        return None

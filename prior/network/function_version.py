"""Differences between the priors of DALLE2-pytorch's releases.

They come from the sources of all releases, and golden files in `tests/parity` pin them. A checkpoint needs the function
of the release that wrote it: the same weights give other embeddings under another release.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (0, 23, 3)
"""Oldest release whose function is known."""
NEWEST = (1, 15, 6)
"""Newest release whose function is known."""
LATEST_FUNCTION = "1.15.6"
"""Release whose function new priors compute."""

DOT_PRODUCT_BIAS = 128.0
"""Factor of the position bias before release 1.4.3.

Those releases divided logits by 128, added the bias, and multiplied by 128 before the softmax.
"""


@dataclass(frozen=True)
class FunctionVersion:
    """A release of DALLE2-pytorch, and the properties of its function."""

    release: tuple[int, ...]
    """Major, minor and patch number."""

    @classmethod
    def parse(cls, text: str) -> FunctionVersion:
        """Parse a release such as `1.15.6`.

        Raises:
            ValueError: the text is not a release, or the function of that release is unknown.
        """
        if not re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,2}", text):
            raise ValueError(f"{text!r} is not a release of dalle2-pytorch, such as 1.15.6")
        release = tuple(int(part) for part in text.split("."))
        release += (0,) * (3 - len(release))
        if not OLDEST <= release <= NEWEST:
            raise ValueError(
                f"dalle2-pytorch {text}: releases {_text(OLDEST)} to {_text(NEWEST)} are known; "
                "where another has the function of one of them, name that one"
            )
        if release == (1, 11, 0):
            raise ValueError("dalle2-pytorch 1.11.0 trained v on a target of the wrong sign; no sampler fits it")
        return cls(release)

    def __str__(self) -> str:
        return _text(self.release)

    @property
    def cosine_attention(self) -> bool:
        """True if attention logits are 16 times the cosine, instead of the scaled dot product."""
        return self.release >= (1, 4, 3)

    @property
    def takes_self_cond(self) -> bool:
        """True if self-conditioning exists, as a token."""
        return self.release >= (1, 6, 1)

    @property
    def reads_self_cond(self) -> bool:
        """True if the self-conditioning token carries the last estimate; in 1.6.1 it is always zero."""
        return self.release >= (1, 6, 2)

    @property
    def self_cond_before_query(self) -> bool:
        """True if the self-conditioning token precedes the query.

        In earlier releases it replaces the query, and a second copy of the image token precedes it.
        """
        return self.release >= (1, 12, 1)

    @property
    def has_null_tokens(self) -> bool:
        """True if learned vectors replace the token states of a dropped text, and a dropped image."""
        return self.release >= (1, 9, 0)

    @property
    def has_null_text(self) -> bool:
        """True if dropping the text also drops the pooled text embedding."""
        return self.release >= (1, 10, 4)

    @property
    def real_timesteps(self) -> bool:
        """True if sinusoids of the timestep are real numbers; earlier releases truncate them to integers."""
        return self.release >= (1, 10, 8)

    @property
    def ddim_noise_sign(self) -> float:
        """Sign of the noise that DDIM derives from an estimate of x0."""
        return 1.0 if self.release >= (0, 25, 2) else -1.0

    @property
    def ddim_ends_at_x0(self) -> bool:
        """True if DDIM's grid starts at -1 and its last step returns the estimate of x0; earlier grids start at 0."""
        return self.release >= (1, 10, 3)

    def ddim_noise_follows_clamp(self, prediction: str) -> bool:
        """Return whether DDIM derives the noise from the clamped x0; earlier releases use the unclamped x0 or eps."""
        if prediction == "eps":
            return self.release >= (1, 12, 3)
        return self.release >= (1, 10, 5)


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))

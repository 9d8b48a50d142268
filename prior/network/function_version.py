"""What changed in the function of DALLE2-pytorch's prior from release to release.

Read from the sources of all releases, and pinned by the golden files of `tests/parity`. A checkpoint computes the
function of the release that wrote it: the same weights under another release give other embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (0, 23, 3)
NEWEST = (1, 15, 6)
LATEST_FUNCTION = "1.15.6"

DOT_PRODUCT_BIAS = 128.0
"""Before 1.4.3 the softmax was taken of 128 times a product divided by 128, and the position bias was added between."""


@dataclass(frozen=True)
class FunctionVersion:
    """A release of DALLE2-pytorch, asked for what it computes."""

    release: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> FunctionVersion:
        """From a release such as `1.15.6`.

        Raises:
            ValueError: it is none, or not one whose function is known.
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
        """Attention compares directions, 16 times their cosine, instead of the scaled dot product."""
        return self.release >= (1, 4, 3)

    @property
    def takes_self_cond(self) -> bool:
        """Self-conditioning exists, as a token."""
        return self.release >= (1, 6, 1)

    @property
    def reads_self_cond(self) -> bool:
        """The self-conditioning token carries the last estimate; in 1.6.1 it was always zero."""
        return self.release >= (1, 6, 2)

    @property
    def self_cond_before_query(self) -> bool:
        """The self-conditioning token precedes the query; before, it took the query's place, after the image again."""
        return self.release >= (1, 12, 1)

    @property
    def has_null_tokens(self) -> bool:
        """Dropping the text puts learned vectors in place of its token states, and dropping the image one in its."""
        return self.release >= (1, 9, 0)

    @property
    def has_null_text(self) -> bool:
        """Dropping the text also drops the pooled text embedding."""
        return self.release >= (1, 10, 4)

    @property
    def real_timesteps(self) -> bool:
        """Sinusoids of the timestep are real numbers; before, they were cut to integers."""
        return self.release >= (1, 10, 8)

    @property
    def ddim_noise_sign(self) -> float:
        """Sign of the noise that DDIM derived from an estimate of x0."""
        return 1.0 if self.release >= (0, 25, 2) else -1.0

    @property
    def ddim_ends_at_x0(self) -> bool:
        """DDIM's last step returns the estimate of x0, on a grid from -1; before, on one from 0."""
        return self.release >= (1, 10, 3)

    def ddim_noise_follows_clamp(self, prediction: str) -> bool:
        """DDIM derives the noise from the clamped x0; before, from the unclamped one or the network's own eps."""
        if prediction == "eps":
            return self.release >= (1, 12, 3)
        return self.release >= (1, 10, 5)


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))

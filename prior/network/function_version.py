"""Differences in the prior's computation between DALLE2-pytorch releases.

Different releases may compute different embeddings from the same weights. A checkpoint must therefore be run with the
computation of the release that wrote it. The differences were derived from the source of every release, and are checked
against golden files in `tests/parity`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OLDEST = (0, 23, 3)
"""Oldest supported DALLE2-pytorch release."""
NEWEST = (1, 15, 6)
"""Newest supported DALLE2-pytorch release."""
LATEST_FUNCTION = "1.15.6"
"""DALLE2-pytorch release that new priors reproduce."""

DOT_PRODUCT_BIAS = 128.0
"""Factor applied to the position bias to reproduce DALLE2-pytorch releases before 1.4.3.

These releases divided the attention logits by 128, added the bias, and multiplied the sum by 128. This leaves the
logits unchanged, but multiplies the bias by 128.
"""


@dataclass(frozen=True)
class FunctionVersion:
    """DALLE2-pytorch release whose computation a prior reproduces.

    The same weights give different embeddings in different releases. The properties describe the differences.
    """

    release: tuple[int, ...]
    """Major, minor and patch numbers."""

    @classmethod
    def parse(cls, text: str) -> FunctionVersion:
        """Parse a DALLE2-pytorch release number such as `1.15.6`. A missing patch number counts as 0.

        Raises:
            ValueError: the text is not a release number, or the release is not supported. All releases from 0.23.3 to
                1.15.6 are supported, except 1.11.0, which trained `v` prediction on targets with the wrong sign.
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
        """True if attention logits are cosine similarities times 16; False if they are scaled dot products."""
        return self.release >= (1, 4, 3)

    @property
    def takes_self_cond(self) -> bool:
        """True if the release can add a self-conditioning token to the network."""
        return self.release >= (1, 6, 1)

    @property
    def reads_self_cond(self) -> bool:
        """True if the release has a self-conditioning token that encodes the previous x0 estimate.

        False for 1.6.1, in which the token is always zero, and for earlier releases, which have no such token.
        """
        return self.release >= (1, 6, 2)

    @property
    def self_cond_before_query(self) -> bool:
        """True if a token sequence with a self-conditioning token ends with this token, followed by the query token.

        The prediction is computed from the network's output at the last token, which is the query. False for releases
        before 1.12.1, which use no query token together with a self-conditioning token. Their sequence ends with a
        second copy of the image tokens, followed by the self-conditioning token.
        """
        return self.release >= (1, 12, 1)

    @property
    def has_null_tokens(self) -> bool:
        """True if classifier-free guidance can drop texts and images, by replacing them with learned vectors.

        The vectors replace the token states (per-token text-encoder outputs) of a dropped text, and the tokens of a
        dropped noisy image. Some releases also replace the text's pooled embedding; see `has_null_text`. If false,
        neither texts nor images can be dropped.
        """
        return self.release >= (1, 9, 0)

    @property
    def has_null_text(self) -> bool:
        """True if learned vectors replace all inputs from a dropped text: its token states and its pooled embedding.

        If false, the network still receives the pooled embedding of a dropped text.
        """
        return self.release >= (1, 10, 4)

    @property
    def real_timesteps(self) -> bool:
        """True if sinusoidal timestep features are real numbers; False if they are truncated to integers."""
        return self.release >= (1, 10, 8)

    @property
    def ddim_noise_sign(self) -> float:
        """Factor applied to the noise that DDIM computes from an x0 estimate: 1, or -1 before release 0.25.2.

        The earlier releases of dalle2-pytorch compute the noise with the wrong sign.
        """
        return 1.0 if self.release >= (0, 25, 2) else -1.0

    @property
    def ddim_ends_at_x0(self) -> bool:
        """True if the last DDIM step goes to timestep -1 and thus returns the x0 estimate; False if it goes to 0."""
        return self.release >= (1, 10, 3)

    def ddim_noise_follows_clamp(self, prediction: str) -> bool:
        """Return True if DDIM computes the noise from the clamped x0 estimate; False if it uses the unclamped estimate.

        Args:
            prediction: prediction target of the network: `x0`, `eps` or `v`.
        """
        if prediction == "eps":
            return self.release >= (1, 12, 3)
        return self.release >= (1, 10, 5)


def _text(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))

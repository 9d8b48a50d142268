"""Known releases of DALLE2-pytorch, and the first release of each property."""

from __future__ import annotations

import pytest

from priorkit.prior.network.function_version import LATEST_FUNCTION, FunctionVersion

from ..reference import RELEASES

CHANGES = {
    "cosine_attention": ("1.4.2", "1.4.3"),
    "takes_self_cond": ("1.5.0", "1.6.1"),
    "reads_self_cond": ("1.6.1", "1.6.2"),
    "self_cond_before_query": ("1.12.0", "1.12.1"),
    "has_null_tokens": ("1.8.4", "1.9.0"),
    "has_null_text": ("1.10.3", "1.10.4"),
    "real_timesteps": ("1.10.7", "1.10.8"),
    "ddim_ends_at_x0": ("1.10.2", "1.10.3"),
}
"""Last release before each change, and first release after it."""


@pytest.mark.parametrize("name", CHANGES)
def test_each_property_changes_at_one_release(name: str) -> None:
    before, after = CHANGES[name]
    for release, expected in (("0.23.3", False), (before, False), (after, True), ("1.15.6", True)):
        assert getattr(FunctionVersion.parse(release), name) is expected, release


def test_releases_are_ordered_as_numbers() -> None:
    assert FunctionVersion.parse("1.10.0").has_null_tokens  # as text, 1.10 comes before 1.9
    assert not FunctionVersion.parse("1.4").cosine_attention
    assert FunctionVersion.parse("1.12").real_timesteps
    assert FunctionVersion.parse("1.9") == FunctionVersion.parse("1.9.0")
    with pytest.raises(ValueError, match=r"1\.11\.0 trained v"):
        FunctionVersion.parse("1.11")


@pytest.mark.parametrize("release", RELEASES)
def test_the_reference_implementation_agrees(release: str) -> None:
    function, known = FunctionVersion.parse(release), RELEASES[release]
    assert function.cosine_attention == (known.attention == "cosine")
    assert function.takes_self_cond == (known.self_cond != "none")
    assert function.reads_self_cond == (known.self_cond in ("for query", "before query"))
    assert function.has_null_tokens == (known.drop != "nothing")
    assert function.has_null_text == (known.drop == "text")
    assert function.real_timesteps == (known.sinusoids == "real")


@pytest.mark.parametrize(("release", "sign"), [("0.23.10", -1.0), ("0.25.1", -1.0), ("0.25.2", 1.0), ("1.15.6", 1.0)])
def test_sign_of_ddim_noise(release: str, sign: float) -> None:
    assert FunctionVersion.parse(release).ddim_noise_sign == sign


@pytest.mark.parametrize(
    ("prediction", "before", "after"),
    [("x0", "1.10.4", "1.10.5"), ("v", "1.10.4", "1.10.5"), ("eps", "1.12.2", "1.12.3")],
)
def test_clamp_in_ddim_noise(prediction: str, before: str, after: str) -> None:
    assert not FunctionVersion.parse(before).ddim_noise_follows_clamp(prediction)
    assert FunctionVersion.parse(after).ddim_noise_follows_clamp(prediction)


@pytest.mark.parametrize("release", ["0.23.3", "0.23.10", "1.0.0", "1.11.2", "1.15.6", LATEST_FUNCTION])
def test_text_of_a_release(release: str) -> None:
    assert str(FunctionVersion.parse(release)) == release


@pytest.mark.parametrize("text", ["", "1", "latest", "v1.2.3", "1.2.3rc1", "1.2.3.4.5", " 1.2.3", "1.2.3\n", "1..2"])
def test_malformed_releases_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a release of dalle2-pytorch, such as"):
        FunctionVersion.parse(text)


@pytest.mark.parametrize("text", ["0.23.2", "0.1.0", "1.15.7", "1.16.0", "2.0.0"])
def test_unknown_releases_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"dalle2-pytorch {text}: releases 0\.23\.3 to 1\.15\.6 are known"):
        FunctionVersion.parse(text)


def test_the_release_with_the_wrong_sign_of_v_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.11\.0 trained v on a target of the wrong sign"):
        FunctionVersion.parse("1.11.0")

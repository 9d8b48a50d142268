"""Parsers of X-Robots-Tag and robots.txt: every form is understood, and no file takes long."""

from __future__ import annotations

import time

import pytest

from priorkit.pipeline.download.fetching.robots import RobotsRules, opted_out, product_token

US = "priorkit/0.1 (a contact)"


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [("priorkit", "priorkit"), (US, "priorkit"), ("My-Bot (x/1)", "my-bot"), (" A/1 b/2", "a"), ("*", "*")],
)
def test_product_token_of_a_user_agent(user_agent: str, token: str) -> None:
    assert product_token(user_agent) == token


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], False),
        (["noai"], True),
        (["NoAI "], True),
        (["noimageai"], True),
        (["noindex, nofollow"], True),
        (["nofollow, noimageindex"], True),
        (["noarchive; noai"], True),
        (["none"], True),
        (["all"], False),
        (["nofollow, noarchive, nosnippet"], False),
        (["noaindex"], False),
        (["noai, "], True),
        ([""], False),
        (["priorkit: noai"], True),
        (["PriorKit : noai"], True),
        (["*: noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noindex, noai"], False),
        (["otherbot: noindex, priorkit: noai"], True),
        (["priorkit: nofollow, otherbot: noai"], False),
        (["otherbot: noai", "noimageai"], True),
        (["all", "priorkit: none"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 PST, noai"], True),
        (["unavailable_after: 2010-06-25T15:00:00+00:00"], False),
        (["max-snippet: 0, max-image-preview: none"], False),
        (["max-image-preview:large, noai"], True),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], False),
        (["priorkit: unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], True),
        (["img2dataset: noai"], True),
        (["IMG2DATASET:noindex"], True),
        (["otherbot: all, img2dataset: none"], True),
    ],
)
def test_opt_outs_are_parsed_like_those_of_google_and_img2dataset(headers: list[str], expected: bool) -> None:
    assert opted_out(headers, US) is expected


def test_opt_outs_apply_to_the_configured_user_agent() -> None:
    assert opted_out(["someone: noai"], "Someone/2 (+https://example.org)")
    assert not opted_out(["priorkit: noai"], "Someone/2 (+https://example.org)")


GROUPS = """
# two groups of ours, one of all, one of another
User-agent: priorkit
User-agent: otherbot
Disallow: /ours

user-AGENT : * # all
Disallow: /
Sitemap: https://example.org/sitemap.xml

User-agent: PriorKit/1.0
Allow: /ours/open
"""


@pytest.mark.parametrize(
    ("body", "path", "expected"),
    [
        ("", "/x", True),
        ("Disallow: /", "/x", True),  # of no agent
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("\ufeffUser-agent: *\r\nDisallow: /a\r\n", "/a/b", False),
        ("User-agent: *\rDisallow: /a", "/b", True),
        ("User-agent: *\nDisallow: /a", "/A", True),
        ("User-agent: *\nDisallow: a", "/a", True),
        ("User-agent: *\nDisallow /a", "/a", True),
        ("User-agent: a\nUser-agent: *\nDisallow: /", "/x", False),
        ("User-agent: a\nDisallow: /\nUser-agent: *\nAllow: /", "/x", True),
        ("User-agent: prior\nDisallow: /", "/x", True),
        ("User-agent: priorkitten\nDisallow: /", "/x", True),
        ("User-agent: img2dataset\nDisallow: /", "/x", False),
        ("User-agent: img2dataset\nDisallow: /\n\nUser-agent: priorkit\nDisallow:", "/x", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: img2dataset\nAllow: /", "/x", True),
        (GROUPS, "/x", True),
        (GROUPS, "/ours/x", False),
        (GROUPS, "/ours/open/x", True),
        # the longest pattern decides, wherever it stands; of equal ones the one that allows
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /a/b\nAllow: /a", "/a/b/c", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /\nAllow: /*.jpg", "/a.jpg", True),
        # wildcards
        ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg", False),
        ("User-agent: *\nDisallow: /*.jpg$", "/a/b.jpg?x", True),
        ("User-agent: *\nDisallow: /*.jpg$", "/a.jpg.jpg", False),
        ("User-agent: *\nDisallow: *.jpg", "/a.jpg?x", False),
        ("User-agent: *\nDisallow: /a*/c", "/ab/b/c/d", False),
        ("User-agent: *\nDisallow: /a*b*c", "/acb", True),
        ("User-agent: *\nDisallow: /a*ab$", "/ab", True),
        ("User-agent: *\nDisallow: /a$", "/a", False),
        ("User-agent: *\nDisallow: /a$", "/ab", True),
        ("User-agent: *\nDisallow: /*?", "/a?b", False),
        ("User-agent: *\nDisallow: /**", "/a", False),
        # one spelling
        ("User-agent: *\nDisallow: /%7Ea", "/~a", False),
        ("User-agent: *\nDisallow: /~a", "/%7ea", False),
        ("User-agent: *\nDisallow: /猫", "/%E7%8C%AB.jpg", False),
        ("User-agent: *\nDisallow: /a%2fb", "/a%2Fb", False),
        ("User-agent: *\nDisallow: /a%2Fb", "/a/b", True),
    ],
)
def test_robots_txt_follows_rfc_9309(body: str, path: str, expected: bool) -> None:
    assert RobotsRules.parse(body.encode(), US).allow(path) is expected


@pytest.mark.parametrize(
    "body", [bytes(range(256)) * 100, b"\xff\xfe\x00", b"User-agent:\nDisallow:\n:" * 99, b":" * 9999]
)
def test_garbage_forbids_nothing(body: bytes) -> None:
    assert RobotsRules.parse(body, US).allow("/x")


@pytest.mark.parametrize(
    "body",
    [
        "".join(f"User-agent: a{n}\n" for n in range(20_000)) + "".join(f"Allow: /{n}\n" for n in range(20_000)),
        "User-agent: *\n" + "Disallow: /*a*a*a*a*a*a*a*b\n" * 15_000,
        "User-agent: *\nDisallow: /" + "*a" * 200_000 + "b",
        "User-agent: *\n" + "".join(f"Disallow: /{n}*x\n" for n in range(35_000)),
    ],
)
def test_every_file_is_parsed_in_linear_time(body: str) -> None:
    """With these files, common parsers need time or memory that grows at least quadratically."""
    start = time.process_time()
    rules = RobotsRules.parse(body.encode()[:500_000], US)
    assert rules.allow("/" + "a" * 2000)
    assert time.process_time() - start < 3

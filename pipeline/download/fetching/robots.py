"""Parsers for X-Robots-Tag headers and robots.txt, following RFC 9309 and Google's implementation.

The existing Python parsers for robots.txt are unsuitable for untrusted files. urllib's parser does not support
wildcards, and applies the first matching rule, not the longest. Protego 0.7 needs 23 s and 1.1 GB for a
120 kB file that names 4,000 user agents.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from urllib.parse import quote

UPSTREAM_AGENT = "img2dataset"
"""User-agent name of img2dataset. We also obey opt-outs for img2dataset, since both tools have the same purpose."""
MAX_ROBOTS_BYTES = 500_000
"""Maximum number of bytes read from a robots.txt. The rest is ignored, as in Google's crawler."""

_RULE_BYTES = 300
"""Estimated memory use of one rule in bytes, not counting the characters of its pattern."""
_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""X-Robots-Tag directives that forbid using an image, the same as in img2dataset. `none` means `noindex, nofollow`."""
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
"""X-Robots-Tag directives that take a value after a colon. They must not be mistaken for user-agent names."""
_AGENT = re.compile(r"^\s*([A-Za-z0-9_.*-]+)\s*:\s*(.*)$", re.DOTALL)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")


def product_token(user_agent: str) -> str:
    """Return the name by which sites refer to a user agent: the lowercase text before the first slash or space."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0].lower()


def opted_out(headers: Sequence[str], user_agent: str) -> bool:
    """Return True if X-Robots-Tag headers forbid our user agent, img2dataset or all user agents from using an image.

    A header is a list of directives. A user-agent name followed by a colon, such as `somebot:`, limits the directives
    after the colon to that user agent. Directives with a value, such as `unavailable_after`, also contain a colon but
    do not name a user agent.

    Args:
        headers: values of all X-Robots-Tag headers of a response.
        user_agent: value of our User-Agent header.
    """
    our_agents = (None, "*", product_token(user_agent), UPSTREAM_AGENT)
    for header in headers:
        agent = None
        for part in re.split(r"[,;]", header):
            directive = part
            match = _AGENT.match(part)
            if match and match.group(1).lower() not in _VALUED_DIRECTIVES:
                agent, directive = match.group(1).lower(), match.group(2)
            if agent in our_agents and directive.strip().lower() in _OPT_OUTS:
                return True
    return False


class RobotsRules:
    """Rules in one robots.txt that apply to our user agent.

    If several rules match a path, the one with the longest pattern decides. A path that no rule matches is allowed.

    Args:
        rules: path patterns, each with True for an allow rule or False for a disallow rule.
    """

    def __init__(self, rules: Sequence[tuple[str, bool]] = ()) -> None:
        # the longest matching pattern decides; of two patterns with the same length, the allow rule wins
        ordered = sorted(set(rules), key=lambda rule: (-len(rule[0]), not rule[1]))
        self._rules = [
            (pattern.removesuffix("$").split("*"), pattern.endswith("$"), allow) for pattern, allow in ordered
        ]
        self.size = sum(len(pattern) + _RULE_BYTES for pattern, _ in ordered)
        """Estimated memory use of the rules in bytes."""

    @classmethod
    def parse(cls, body: bytes, user_agent: str) -> RobotsRules:
        """Parse a robots.txt and return the rules that apply to our user agent.

        If the file has a group of rules for our own user-agent name, only this group applies. Otherwise, the group for
        `img2dataset` applies or, if there is none, the group for all user agents (`*`).
        """
        groups: dict[str, list[tuple[str, bool]]] = {}
        agents = (product_token(user_agent), UPSTREAM_AGENT, "*")
        current: set[str] = set()
        in_rules = False
        for line in body.decode("utf-8-sig", errors="replace").splitlines():
            key, _, value = line.partition("#")[0].partition(":")
            key, value = key.strip().lower(), value.strip()
            if key == "user-agent":
                if in_rules:
                    current, in_rules = set(), False
                if (agent := product_token(value)) in agents:
                    current.add(agent)
                    groups.setdefault(agent, [])
            elif key in ("allow", "disallow"):
                in_rules = True
                if value:
                    for agent in current:
                        groups[agent].append((_normalise(value), key == "allow"))
        return cls(next((groups[agent] for agent in agents if agent in groups), ()))

    def allow(self, path: str) -> bool:
        """Return True if a path, including its query, may be fetched."""
        path = _normalise(path)
        return next((allow for parts, whole, allow in self._rules if _matches(parts, whole, path)), True)


def _matches(parts: list[str], whole: bool, path: str) -> bool:
    """Return True if a path matches the pattern of a robots.txt rule. Matching takes linear time.

    In a pattern, `*` matches any sequence of characters, and a final `$` matches the end of the path.

    Args:
        parts: pattern of an Allow or Disallow line, without a final `$`, split at each `*`.
        whole: True if the pattern ended in `$` and must match the whole path; False if matching a prefix is enough.
        path: path in the form that `_normalise` returns.
    """
    first, *rest = parts
    if not path.startswith(first):
        return False
    if not rest:
        return not whole or path == first
    position = len(first)
    for part in rest[:-1]:
        start = path.find(part, position)
        if start < 0:
            return False
        position = start + len(part)
    if whole:
        return len(path) - len(rest[-1]) >= position and path.endswith(rest[-1])
    return path.find(rest[-1], position) >= 0


def _normalise(path: str) -> str:
    """Return the canonical form of a path, which is the same for all equivalent percent-encodings of the path.

    In this form, spaces and non-ASCII characters are escaped, with uppercase hexadecimal digits. Letters, digits and
    `-._~` are not escaped.
    """

    def spell(escape: re.Match[str]) -> str:
        character = chr(int(escape.group(1), 16))
        return character if character in _UNRESERVED else escape.group().upper()

    return _ESCAPE.sub(spell, quote(path, safe=string.punctuation, errors="replace"))

"""What a site asks of crawlers: X-Robots-Tag headers and robots.txt, as RFC 9309 and Google read them.

The two parsers of robots.txt that are at hand do not stand a hostile web: urllib's knows no wildcards and takes the
first rule that matches, and Protego 0.7 needs 23 s and 1.1 GB for a file of 120 kB that names 4,000 agents.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from urllib.parse import quote

UPSTREAM_AGENT = "img2dataset"
"""Opt-outs that name img2dataset are meant for what we do, and bind us too."""
MAX_ROBOTS_BYTES = 500_000
"""What is read of a robots.txt, as by Google; the rest is ignored."""

_RULE_BYTES = 300
"""What the objects of one rule take, beside its characters."""
_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""X-Robots-Tag directives that keep an image out, as in img2dataset; `none` stands for noindex and nofollow."""
_VALUED_DIRECTIVES = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_AGENT = re.compile(r"^\s*([A-Za-z0-9_.*-]+)\s*:\s*(.*)$", re.DOTALL)
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset(string.ascii_letters + string.digits + "-._~")


def product_token(user_agent: str) -> str:
    """The name by which sites address an agent: what stands before the first slash or space, in small letters."""
    return re.split(r"[/\s]", user_agent.strip(), maxsplit=1)[0].lower()


def opted_out(headers: Sequence[str], user_agent: str) -> bool:
    """Whether X-Robots-Tag headers forbid the use of an image by us.

    A header is a list of directives; `agent: ...` addresses those after it to one agent only. The colon of a directive
    with a value, such as `unavailable_after`, names no agent.
    """
    ours = (None, "*", product_token(user_agent), UPSTREAM_AGENT)
    for header in headers:
        agent = None
        for part in re.split(r"[,;]", header):
            directive = part
            match = _AGENT.match(part)
            if match and match.group(1).lower() not in _VALUED_DIRECTIVES:
                agent, directive = match.group(1).lower(), match.group(2)
            if agent in ours and directive.strip().lower() in _OPT_OUTS:
                return True
    return False


class RobotsRules:
    """The rules of one robots.txt that concern us. Without rules all is allowed."""

    def __init__(self, rules: Sequence[tuple[str, bool]] = ()) -> None:
        # the longest pattern that matches decides, and of equal ones the one that allows
        ordered = sorted(set(rules), key=lambda rule: (-len(rule[0]), not rule[1]))
        self._rules = [
            (pattern.removesuffix("$").split("*"), pattern.endswith("$"), allow) for pattern, allow in ordered
        ]
        self.size = sum(len(pattern) + _RULE_BYTES for pattern, _ in ordered)
        """Bytes of memory that the rules take, about."""

    @classmethod
    def parse(cls, body: bytes, user_agent: str) -> RobotsRules:
        """The group of our own name, else img2dataset's, else that of all agents."""
        groups: dict[str, list[tuple[str, bool]]] = {}
        wanted = (product_token(user_agent), UPSTREAM_AGENT, "*")
        current: set[str] = set()
        in_rules = False
        for line in body.decode("utf-8-sig", errors="replace").splitlines():
            key, _, value = line.partition("#")[0].partition(":")
            key, value = key.strip().lower(), value.strip()
            if key == "user-agent":
                if in_rules:
                    current, in_rules = set(), False
                if (agent := product_token(value)) in wanted:
                    current.add(agent)
                    groups.setdefault(agent, [])
            elif key in ("allow", "disallow"):
                in_rules = True
                if value:
                    for agent in current:
                        groups[agent].append((_normal(value), key == "allow"))
        return cls(next((groups[agent] for agent in wanted if agent in groups), ()))

    def allow(self, path: str) -> bool:
        """Whether a path, with its query, may be fetched."""
        path = _normal(path)
        return next((allow for parts, whole, allow in self._rules if _matches(parts, whole, path)), True)


def _matches(parts: list[str], whole: bool, path: str) -> bool:
    """Whether the parts, with anything between them, begin the path, or are all of it. Takes linear time."""
    first, *rest = parts
    if not path.startswith(first):
        return False
    if not rest:
        return not whole or path == first
    position = len(first)
    for part in rest[:-1]:
        found = path.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    if whole:
        return len(path) - len(rest[-1]) >= position and path.endswith(rest[-1])
    return path.find(rest[-1], position) >= 0


def _normal(path: str) -> str:
    """A path in the one spelling in which paths are compared: only what must be is escaped, in capitals."""

    def spell(escape: re.Match[str]) -> str:
        character = chr(int(escape.group(1), 16))
        return character if character in _UNRESERVED else escape.group().upper()

    return _ESCAPE.sub(spell, quote(path, safe=string.punctuation, errors="replace"))

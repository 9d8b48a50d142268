"""Captions that are drawn into pictures, wrapped to a width."""

from __future__ import annotations

from PIL import ImageFont

_CUT = "..."


def wrap_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, max_lines: int) -> list[str]:
    """Wrap text to a width in pixels, and return at most `max_lines` lines.

    If there are more, the last one that is returned ends in three dots. A word that is wider than a line is broken.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
                if len(lines) > max_lines:
                    break
            lines[-1] += character
        if len(lines) > max_lines:
            break
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and font.getlength(last + _CUT) > width:
        last = last[:-1]
    return [*lines[: max_lines - 1], last.rstrip() + _CUT]

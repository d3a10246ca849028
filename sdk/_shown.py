"""Text of the user's as it is shown: no character of it moves the cursor, and none of it fills the screen."""

from __future__ import annotations

import re

__all__ = ["printable", "shortened"]

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # what terminals obey, but for the tab and the line feed
    "\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff"  # line ends, marks without width, changes of direction
    "\ud800-\udfff]"
)


_MARK = 40


def printable(text: str) -> str:
    """``text`` with everything a terminal would obey, or not show, written as an escape (``\\x1b``, ``\\u202e``)."""
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shortened(text: str, most: int) -> str:
    """``text``, or its beginning and its end if it has more than ``most`` characters.

    What is cut lies between, because messages end with what to do.
    """
    if len(text) <= most:
        return text
    half = (most - _MARK) // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"

"""A hook of the documentation site: links to folders, which a site has no page for, become plain text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``markdown`` without the links that lead to a folder."""
    here = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        return match[1] if (here / match[2]).is_dir() else match[0]

    return _LINK.sub(plain, markdown)

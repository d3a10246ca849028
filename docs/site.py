"""Hooks of the documentation site: what Markdown on a forge and docstrings in Sphinx's roles need to become pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)\)")
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>(~?)([\w.]+)</code>")
_ANCHOR = re.compile(r' id="(hasten(?:\.[a-zA-Z]\w*)*)"')


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``markdown`` without the links that lead to a folder, which a site has no page for."""
    here = Path(page.file.abs_src_path).parent

    def plain(match: re.Match[str]) -> str:
        return match[1] if (here / match[2]).is_dir() else match[0]

    return _LINK.sub(plain, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """``html`` with roles such as ``:class:`~hasten.Config``` as code, linked where the page describes that name."""
    anchors = set(_ANCHOR.findall(html))

    def code(match: re.Match[str]) -> str:
        tilde, path = match.groups()
        shown = f"<code>{path.rpartition('.')[2] if tilde else path}</code>"
        named = [anchor for anchor in (path, f"hasten.{path}") if anchor in anchors]
        found = named or [anchor for anchor in anchors if anchor.endswith(f".{path}")]
        return f'<a href="#{found[0]}">{shown}</a>' if len(found) == 1 else shown

    return _ROLE.sub(code, html)

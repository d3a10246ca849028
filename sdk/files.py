"""Reading and writing a user's files: pictures, prompts, text, JSON, YAML and records that survive a kill."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten._lazy import lazy_names

if TYPE_CHECKING:
    from hasten._document import parse_json, parse_yaml, read_json_lines
    from hasten._files import as_fields, inside, read_fields, read_json
    from hasten._pictures import (
        Listing,
        describe_unread,
        list_folder,
        list_names,
        picture_suffixes,
        read_rgb,
        to_rgb,
    )
    from hasten._prompts import read_prompts
    from hasten._records import append_lines, read_records, read_sealed, repair, seal, write_atomically
    from hasten._saved import is_intact, picture_files, save_frames
    from hasten._text import read_lines, read_text

__all__ = [
    "Listing",
    "append_lines",
    "as_fields",
    "describe_unread",
    "inside",
    "is_intact",
    "list_folder",
    "list_names",
    "parse_json",
    "parse_yaml",
    "picture_files",
    "picture_suffixes",
    "read_fields",
    "read_json",
    "read_json_lines",
    "read_lines",
    "read_prompts",
    "read_records",
    "read_rgb",
    "read_sealed",
    "read_text",
    "repair",
    "save_frames",
    "seal",
    "to_rgb",
    "write_atomically",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "hasten._files": (
        "as_fields",
        "inside",
        "read_fields",
        "read_json",
    ),
    "hasten._document": (
        "parse_json",
        "parse_yaml",
        "read_json_lines",
    ),
    "hasten._pictures": (
        "Listing",
        "describe_unread",
        "list_folder",
        "list_names",
        "picture_suffixes",
        "read_rgb",
        "to_rgb",
    ),
    "hasten._prompts": ("read_prompts",),
    "hasten._records": (
        "append_lines",
        "read_records",
        "read_sealed",
        "repair",
        "seal",
        "write_atomically",
    ),
    "hasten._saved": (
        "is_intact",
        "picture_files",
        "save_frames",
    ),
    "hasten._text": (
        "read_lines",
        "read_text",
    ),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""Records of training runs, and the README of a shipped folder."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hasten import CheckpointError
from hasten.files import read_fields, read_json

__all__ = [
    "describe_hardware",
    "has_record",
    "read_chain",
    "read_record",
    "read_shipped_chain",
    "readme",
    "ship_chain",
    "write_record",
]

_FILE = "run.json"
_CHAIN = "runs.json"


def describe_hardware(device: str) -> str:
    """The processor, or the GPU, that ``device`` names."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in known.items()}
    bfloat16 = " with AMX bf16" if "amx_bf16" in fields.get("flags", "") else ""
    return fields.get("model name", platform.machine()) + bfloat16


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a finished run to its folder."""
    (folder / _FILE).write_text(json.dumps(dict(record), indent=2) + "\n", "utf-8")


def has_record(folder: Path) -> bool:
    """Whether the run in this folder is finished."""
    return (folder / _FILE).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        CheckpointError: the run is not finished.
    """
    file = folder / _FILE
    if not has_record(folder):
        raise CheckpointError(f"{folder} holds no finished run; go on with `hasten mini train {folder.name}`")
    record = read_json(file, "the record of a run", "train it again")
    if not isinstance(record.get("recipe"), str):
        raise CheckpointError(f"{file}: recipe is missing, or no text; train it again")
    return record


def read_chain(folder: Path) -> list[dict[str, Any]]:
    """The records of a finished run and of the runs that provided its initial weights, oldest first.

    Raises:
        CheckpointError: the run is not finished.
    """
    chain = [read_record(folder)]
    while "begun_with" in chain[0]:
        begun = chain[0]["begun_with"]
        if "bundled" in begun:
            earlier = begun.get("chain", ())  # older records hold none
            refined = bool(earlier) and earlier[-1]["recipe"] == chain[0]["recipe"]
            return [*earlier, *chain] if refined else chain
        chain.insert(0, begun)
    return chain


def ship_chain(records: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the records of the runs of a shipped model to its folder, for runs that start from it."""
    plain = [{key: value for key, value in record.items() if key != "begun_with"} for record in records]
    (folder / _CHAIN).write_text(json.dumps({"runs": plain}, indent=2) + "\n", "utf-8")


class _Chain(BaseModel):
    runs: list[dict[str, Any]]


def read_shipped_chain(folder: Path) -> list[dict[str, Any]]:
    """The records that :func:`ship_chain` wrote, oldest first; empty if there are none."""
    file = folder / _CHAIN
    if not file.is_file():
        return []
    return read_fields(file, _Chain, "the records of its runs", "reinstall hasten").runs


def readme(
    title: str, text: str, records: Sequence[Mapping[str, Any]], figures: Sequence[str], size: int
) -> str:
    """The README of a shipped folder.

    Args:
        title: name of the model.
        text: description and usage.
        records: records of the runs of its parts.
        figures: lines of a Markdown table with the evaluation.
        size: bytes of the weights.
    """
    parts = [f"# {title}", text.strip(), "## Training", _table(records)]
    versions = sorted({f"torch {record['torch']}" for record in records})
    hardware = sorted({record["hardware"] for record in records})
    parts.append(
        f"Hardware: {'; '.join(hardware)}. {', '.join(versions)}. Times are wall clock, as measured."
    )
    if figures:
        parts += ["## Measured", "\n".join(figures)]
    parts.append(f"Weights in half precision: {size / 1e6:.2f} MB. This page was written by the exporter.")
    return "\n\n".join(parts) + "\n"


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| part | command | parameters | steps | seed | minutes | at the end |",
        "|---|---|---|---|---|---|---|",
    ]
    for record in records:
        final = ", ".join(f"{name} {value:.4g}" for name, value in record["final"].items())
        lines.append(
            f"| {record['recipe']} | `{record['command']}` | {record['parameters'] / 1e6:.2f} M | {record['steps']} | "
            f"{record['seed']} | {record['seconds'] / 60:.0f} | {final} |"
        )
    return "\n".join(lines)

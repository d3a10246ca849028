"""The folder that ``hasten generate`` writes: pictures, and a manifest that can be continued after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import CheckpointError, ConfigError
from hasten._generation import Job, Sample
from hasten._records import append_lines, read_records, read_sealed, repair, seal, write_atomically
from hasten._saved import is_intact, save_frames

if TYPE_CHECKING:
    from hasten._processes import Processes

__all__ = ["OutputFolder", "missing_batches"]


class OutputFolder:
    """Finished pictures of one request, each with a line in the manifest.

    A single process writes ``manifest.jsonl``. Several write a part each, ``manifest.RANK.part.jsonl``, which
    :meth:`merge` joins.

    Args:
        folder: exists and can be written.
        request: what is being generated; a folder of another request is refused.
        processes: this process among those that write here.

    Raises:
        ConfigError: the folder holds pictures of another request.
        CheckpointError: a file of the folder is damaged.
    """

    def __init__(self, folder: Path, request: Mapping[str, Any], processes: Processes) -> None:
        self.folder = folder
        self._parts = processes.world > 1
        self._own = folder / (f"manifest.{processes.rank}.part.jsonl" if self._parts else "manifest.jsonl")
        self._check(request)
        repair(self._own)

    def _check(self, request: Mapping[str, Any]) -> None:
        file, now = self.folder / "request.json", json.loads(json.dumps(request, default=str))
        before = read_sealed(file, f"remove {self.folder}, or choose another --out")
        if before is not None:
            different = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
            if different:
                raise ConfigError(
                    f"{self.folder} holds pictures made with another {', '.join(different)}; choose another --out, or "
                    f"remove the folder"
                )
        write_atomically(file, seal(now))

    def records(self, *, verify: bool = True) -> dict[int, dict[str, Any]]:
        """Prompt number -> record of every picture that is there, of all processes.

        Args:
            verify: leave out those whose picture was lost or changed.

        Raises:
            CheckpointError: names the file and line of a damaged record.
        """
        found: dict[int, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("manifest*.jsonl")):
            for number, record in enumerate(read_records(path), 1):
                self._require_record(path, number, record)
                picture = self.folder / record["file"]
                if is_intact(picture, record.get("sha256")) if verify else picture.exists():
                    found[record["index"]] = record
        return dict(sorted(found.items()))

    @staticmethod
    def _require_record(path: Path, number: int, record: Mapping[str, Any]) -> None:
        kinds: dict[str, Any] = {"index": int, "file": str, "seconds": (int, float)}
        for name, kind in kinds.items():
            if not isinstance(record.get(name), kind):
                raise CheckpointError(
                    f"{path}:{number} is not a record of a picture: {name} is {record.get(name)!r}; remove "
                    "the line to generate the picture again"
                )

    def add(self, sample: Sample) -> None:
        """Write one picture, and then its record."""
        path, digest = save_frames(sample.frames, self.folder, f"{sample.index:05d}")
        record = {
            "key": f"{sample.index:05d}",
            "index": sample.index,
            "prompt": sample.prompt,
            "seed": sample.seed,
            "file": path.name,
            "sha256": digest,
            "seconds": round(sample.seconds, 6),
        }
        append_lines(self._own, [record])

    def merge(self) -> Sequence[dict[str, Any]]:
        """All records in the order of the prompts; of several processes, joined in ``manifest.jsonl``."""
        records = list(self.records().values())
        if self._parts:
            lines = "".join(json.dumps(record, sort_keys=True) + "\n" for record in records)
            write_atomically(self.folder / "manifest.jsonl", lines.encode())
            for part in self.folder.glob("manifest.*.part.jsonl"):
                part.unlink()
        return records


def missing_batches(job: Job, done: set[int], processes: Processes) -> Iterator[tuple[int, Job]]:
    """The batches this process has to make, with the number of their first prompt.

    Whole batches, because a picture depends, in its last bit, on the batch it is made in.
    """
    for number, start in enumerate(range(0, len(job.prompts), job.batch_size)):
        prompts = job.prompts[start : start + job.batch_size]
        if processes.owns(number) and not done.issuperset(range(start, start + len(prompts))):
            yield start, replace(job, prompts=prompts, seed=job.seed + start)

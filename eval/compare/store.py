"""A comparison on disk: what was asked for, one record per finished picture, and the pictures.

``run.json`` (what was asked for, and where), ``records/rank-R.jsonl`` (each process writes its own),
``images/ARM/``, ``steps/`` (what the techniques did, step by step). A record is written after its picture, so
that every record has one; whatever a killed process leaves half done has no record and is made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hasten.extend import CheckpointError, ConfigError
from hasten.files import (
    append_lines,
    is_intact,
    picture_files,
    read_records,
    read_sealed,
    repair,
    save_frames,
    seal,
    write_atomically,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Record", "RunStore", "slug"]


@dataclass(frozen=True)
class Record:
    """One finished picture.

    Args:
        arm: configuration it was made with.
        index: number of its prompt.
        seed: of its noise.
        file: its place below the run's folder; the folder of its frames for a video.
        sha256: of that file, or of all frames one after the other.
        batch: number of the batch it was made in.
        batch_seconds: wall-clock time of that batch; batches of one number ran next to each other in every
            arm.
        rank: process that made it.
    """

    arm: str
    index: int
    seed: int
    file: str
    sha256: str
    batch: int
    batch_seconds: float
    rank: int = 0


_RECORD = TypeAdapter(Record)


def slug(name: str) -> str:
    """``name`` as the name of a file."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")


class _ArmFields(TypedDict):
    name: str
    role: str
    steps: int
    config: dict[str, Any] | None
    seed_offset: int
    time_of: list[str]


class _RunFields(TypedDict):
    """What ``run.json`` has to hold."""

    request: dict[str, Any]
    arms: list[_ArmFields]
    flops: dict[str, int]
    profiles: dict[str, Any]
    about: dict[str, Any]


class RunStore:
    """The folder of one comparison, as one process sees it.

    Args:
        folder: created if it does not exist.
        rank: number of this process; it writes its own record file and reads those of all.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder, self.rank = folder, rank
        for name in ("records", "images", "steps"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._own = folder / "records" / f"rank-{rank}.jsonl"

    def resume(self) -> None:
        """Get ready to write: drop what a kill in the middle of a record left of it."""
        repair(self._own)

    @property
    def run_file(self) -> Path:
        """What was asked for and where it ran."""
        return self.folder / "run.json"

    def read_run(self) -> dict[str, Any] | None:
        """Content of ``run.json``, ``None`` before the run began.

        Raises:
            CheckpointError: if the file is damaged.
        """
        run = read_sealed(self.run_file, self._remedy)
        if run is not None:
            try:
                TypeAdapter(_RunFields).validate_python(run)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"]))
                raise CheckpointError(
                    f"{self.run_file} is damaged ({place}: {first['msg']}); {self._remedy}"
                ) from error
        return run

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder}, or choose another --out"

    def begin(self, run: Mapping[str, Any]) -> None:
        """Write ``run.json``; its key ``request`` says what a resumed run must ask for again."""
        write_atomically(self.run_file, seal(run))

    def check_request(self, request: Mapping[str, Any]) -> None:
        """Refuse to continue a run that was asked for something else.

        Raises:
            ConfigError: names what differs.
        """
        run = self.read_run()
        if run is None:
            return
        before = run["request"]
        # Through JSON, because that turned tuples into lists in the file.
        now = json.loads(json.dumps(request))
        different = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if different:
            raise ConfigError(
                f"{self.folder} holds a run with another {', '.join(different)}; choose another --out, or "
                f"repeat the command of that run to continue it"
            )

    def add(self, records: Sequence[Record]) -> None:
        """Keep the records of pictures that :meth:`save_frames` has written, all of them or none."""
        append_lines(self._own, [asdict(record) for record in records])

    def save_frames(self, arm: str, index: int, frames: Sequence[Image]) -> tuple[str, str]:
        """Write a picture as PNG, or the frames of a video as a folder of them, without loss.

        Returns:
            Its place below the folder, and the hash of all files.
        """
        path, digest = save_frames(frames, self.folder / "images" / slug(arm), f"{index:05d}")
        return path.relative_to(self.folder).as_posix(), digest

    def frame_files(self, arm: str, index: int) -> tuple[Path, ...]:
        """File of the finished picture of a prompt, or of every frame of its video."""
        place = self.folder / "images" / slug(arm) / f"{index:05d}"
        return tuple(picture_files(place if place.is_dir() else place.with_suffix(".png")))

    def open_frames(self, arm: str, index: int) -> tuple[Image, ...]:
        """The finished picture of a prompt, or every frame of its video."""
        from PIL import Image

        images = []
        for path in self.frame_files(arm, index):
            with Image.open(path) as image:
                image.load()
                images.append(image)
        return tuple(images)

    def open_image(self, arm: str, index: int) -> Image:
        """The finished picture of a prompt, or the middle frame of its video."""
        frames = self.open_frames(arm, index)
        return frames[len(frames) // 2]

    def records(self, *, verify: bool = True) -> dict[tuple[str, int], Record]:
        """Records of all processes by arm and prompt number.

        Args:
            verify: leave out those whose picture was lost or changed.

        Raises:
            CheckpointError: names the file and line of a damaged record.
        """
        found: dict[tuple[str, int], Record] = {}
        for path in sorted((self.folder / "records").glob("rank-*.jsonl")):
            for number, line in enumerate(read_records(path), 1):
                record = _record(path, number, line)
                if not verify or is_intact(self.folder / record.file, record.sha256):
                    found[record.arm, record.index] = record
        return found

    def save_steps(self, arm: str, report: Mapping[str, Any]) -> None:
        """Keep what the techniques of an arm did in one batch."""
        write_atomically(self.folder / "steps" / f"{slug(arm)}.json", seal(report))

    def read_steps(self, arm: str) -> dict[str, Any] | None:
        """What :meth:`save_steps` kept, if anything.

        Raises:
            CheckpointError: if the file is damaged.
        """
        path = self.folder / "steps" / f"{slug(arm)}.json"
        remedy = "remove it and run the same command again"
        report = read_sealed(path, remedy)
        if report is not None and not isinstance(report.get("steps"), list):
            raise CheckpointError(f"{path} is damaged (it has no steps); {remedy}")
        return report

    def has_steps(self, arm: str) -> bool:
        """Whether what the techniques of an arm did is there, undamaged."""
        try:
            return self.read_steps(arm) is not None
        except CheckpointError:
            return False

    def merge(self, order: Sequence[str]) -> Path:
        """Write ``records.jsonl``: the records of all processes in one file, by prompt and then by
        ``order``.
        """
        rank_of = {arm: number for number, arm in enumerate(order)}
        known = [record for record in self.records().values() if record.arm in rank_of]
        ordered = sorted(known, key=lambda record: (record.index, rank_of[record.arm]))
        lines = [json.dumps(asdict(record), sort_keys=True) + "\n" for record in ordered]
        target = self.folder / "records.jsonl"
        write_atomically(target, "".join(lines).encode())
        return target


def _record(path: Path, number: int, line: Mapping[str, Any]) -> Record:
    """A record as it stands in line ``number`` of a file."""
    try:
        Record(**line)  # names
        return _RECORD.validate_json(json.dumps(line), strict=True)
    except (TypeError, ValidationError) as error:
        reason = str(error).splitlines()
        raise CheckpointError(
            f"{path}:{number} is not a record of a comparison ({' '.join(reason[1:3]) or reason[0]}); "
            f"remove the line to generate its picture again"
        ) from error

"""From a prompt to a file: a long video, made by all processes together."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.extend import ConfigError, FrameDecoder, Pipeline, Target
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.decode import as_pixels, unpacked
from hasten.plugins.video_infinity.division import gather_latents
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.process_mesh import ProcessMesh
from hasten.plugins.video_infinity.progress import Progress
from hasten.plugins.video_infinity.run_handlers import keep_local_latents
from hasten.plugins.video_infinity.session import Session
from hasten.plugins.video_infinity.video_file import (
    Encoding,
    PictureFolder,
    VideoFile,
    check_output,
    join_segments,
)

__all__ = ["LongVideo", "write_video"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class LongVideo:
    """A finished video.

    Args:
        path: the file, or the folder of pictures.
        frames: number of frames.
        rank: rank of this process.
        world: number of processes.
        denoise_seconds: wall-clock time of denoising.
        decode_seconds: wall-clock time of decoding and encoding.
        traffic: for each kind of layer, the bytes that this process ``sent`` and ``received`` and the
            ``milliseconds`` it waited for others.
    """

    path: Path
    frames: int
    rank: int
    world: int
    denoise_seconds: float
    decode_seconds: float
    traffic: Mapping[str, Mapping[str, float]]


def write_video(
    pipe: Pipeline,
    path: str | Path,
    call: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    *,
    techniques: Mapping[str, Any] | None = None,
    encoding: Encoding | None = None,
    tell: Tell = lambda _: None,
) -> LongVideo:
    """Make a long video. Every process calls this with the same arguments.

    Args:
        pipe: a video pipeline of a supported family.
        path: a file that ends in ``.mp4``, ``.mov`` or ``.mkv``, or a folder for PNG files (a name without suffix).
            Pictures of an earlier, longer video are removed from the folder. With several machines, the path must be
            on a disk that they share.
        call: arguments of the pipeline call (``prompt``, ``num_frames``, ``num_inference_steps``, ``generator``).
        options: options of ``video_infinity``.
        techniques: names and options of other techniques to enable.
        encoding: frame rate and codec; 8 frames per second and libx264 by default.
        tell: called on rank 0 with a text that says how many frames all processes have written.

    Raises:
        ConfigError: an argument is not valid.
        RankError: another process failed.
        ConflictError: another run writes to ``path``.
        HastenError: the output cannot be written.
    """
    path, encoding = Path(path), encoding or Encoding()
    check_output(path, encoding.codec)
    configured = {**(techniques or {}), "video_infinity": dict(options or {})}
    began = time.perf_counter()
    with ExitStack() as lock:
        session, latents = _denoise(pipe, path, call, configured, lock)
        denoised = time.perf_counter()
        processes = session.processes
        processes.where = "while decoding"
        with Progress(processes, tell) as progress:
            frames = _Writer(pipe, session, path, encoding, tell, progress).write(latents, call)
        processes.gather("written")
    traffic = {
        kind: {"sent": t.sent, "received": t.received, "milliseconds": t.exposed_milliseconds}
        for kind, t in session.exchange.traffic.items()
    }
    seconds = (denoised - began, time.perf_counter() - denoised)
    return LongVideo(path, frames, processes.rank, processes.world, *seconds, traffic)


def _denoise(
    pipe: Any, path: Path, call: Mapping[str, Any], configured: Mapping[str, Any], lock: ExitStack
) -> tuple[Session, Tensor]:
    """The run and the latents of this rank. The output is locked until ``lock`` is closed."""
    import hasten

    decoder = Target.of(pipe).capability(FrameDecoder)
    with hasten.accelerate(pipe, configured), keep_local_latents() as sessions:
        config = VideoInfinityConfig(**configured["video_infinity"])
        processes = join(config, torch.device(pipe._execution_device))
        lock.enter_context(processes.hold(path))
        if decoder.independent:  # otherwise only rank 0 writes
            _require_one_disk(processes, _shared_folder(path))
        output = pipe(**{**call, "return_dict": False})
    return sessions[-1], output[0]


@dataclass
class _Writer:
    """Decodes and encodes on one rank."""

    pipe: Pipeline
    session: Session
    path: Path
    encoding: Encoding
    tell: Tell
    progress: Progress

    @torch.no_grad()
    def write(self, local: Tensor, call: Mapping[str, Any]) -> int:
        """Decode the latents of this rank and assemble the video. Returns its number of frames."""
        arguments = self.session.target.call_arguments(**call)
        decoder = self.session.target.capability(FrameDecoder)
        patch = self.session.mixing.patch(self.pipe)
        if decoder.independent:
            held = len(self.session.held) * patch
            return self._share(decoder, unpacked(self.pipe, self.session, local, arguments, held), patch)
        whole = gather_latents(self.session, local)
        return self._serial(
            decoder, unpacked(self.pipe, self.session, whole, arguments, self.session.frames * patch)
        )

    def _serial(self, decoder: FrameDecoder, latents: Tensor) -> int:
        """Decode in order on rank 0, for autoencoders whose frames depend on earlier ones."""
        if self.session.processes.rank == 0:
            self._encode(as_pixels(decoder.frames(self.pipe, latents)), self.path)
            if self.pictures:
                self._remove_later_pictures()
        self.progress.finish()
        return self.progress.wait([0])

    @property
    def pictures(self) -> bool:
        """Whether the output is a folder of pictures."""
        return self.path.suffix == ""

    def _encode(self, pieces: Iterable[Tensor], path: Path, first: int = 0) -> None:
        if self.pictures:
            folder = PictureFolder(path, first)
            for piece in pieces:
                folder.write(piece)
                self.progress.add(len(piece))
            return
        with VideoFile(path, self.encoding) as file:
            for piece in pieces:
                file.write(piece)
                self.progress.add(len(piece))

    def _share(self, decoder: FrameDecoder, latents: Tensor, patch: int) -> int:
        """Decode the clips of this rank into one segment each; rank 0 joins all segments."""
        processes, assignment = self.session.processes, self.session.assignment
        parts = _shared_folder(self.path)
        parts.mkdir(parents=True, exist_ok=True)
        segments = [parts / f"clip-{clip:04d}{self.path.suffix}" for clip in range(len(assignment.clips))]
        for clip in assignment.here if processes.branch == 0 else ():
            frames = assignment.clips[clip]
            start = (frames.start - self.session.held.start) * patch
            part = latents[:, :, start : start + len(frames) * patch]
            pieces = as_pixels(decoder.frames(self.pipe, part))
            self._encode(pieces, self.path if self.pictures else segments[clip], frames.start * patch)
        if processes.rank == 0:
            self._assemble(segments, self.session.frames * patch)
        self.progress.finish()
        return self.progress.wait(range(processes.world))

    def _assemble(self, segments: list[Path], frames: int) -> None:
        """Wait for all other ranks and join the segments."""
        self.progress.wait(range(1, self.session.processes.world))
        if self.pictures:
            self._remove_later_pictures()
            return
        self.tell(f"joining {len(segments)} segments")
        join_segments(segments, self.path, frames)
        shutil.rmtree(segments[0].parent, ignore_errors=True)

    def _remove_later_pictures(self) -> None:
        """Remove pictures after the last frame, which belong to an earlier, longer video."""
        count = self.progress.frames
        for file in (*self.path.glob("*.png"), *self.path.glob("*.part")):
            if re.fullmatch(r"\d{6}", file.stem) and (file.suffix == ".part" or int(file.stem) >= count):
                file.unlink()


def _shared_folder(path: Path) -> Path:
    """The folder that the ranks write their parts of the video to."""
    return path if path.suffix == "" else path.with_name(f"{path.name}.parts")


def _require_one_disk(processes: ProcessMesh, folder: Path) -> None:
    """Check that all ranks see the same ``folder``, before any step is computed.

    Raises:
        ConfigError: a rank does not see it.
    """
    if processes.world == 1:
        return
    mark = folder / f".{processes.gather(uuid.uuid4().hex)[0]}"
    if processes.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    processes.gather("marked")
    blind = [rank for rank, sees in enumerate(processes.gather(mark.exists())) if not sees]
    if processes.rank == 0:
        mark.unlink()
    if blind:
        raise ConfigError(
            f"rank {blind[0]} does not see {folder}, where rank 0 assembles the video: give an output path on a "
            "disk that all machines share"
        )

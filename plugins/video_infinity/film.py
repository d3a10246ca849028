"""The main job: a long video from a prompt to a file, over as many processes as there are."""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten.extend import ConfigError, FrameDecoder, Target
from hasten.plugins.video_infinity.config import VideoInfinityConfig
from hasten.plugins.video_infinity.decode import as_pixels, unpacked
from hasten.plugins.video_infinity.divide import gather_latents, keep_local
from hasten.plugins.video_infinity.encode import Film, PictureFolder, check_output, join_segments
from hasten.plugins.video_infinity.joining import join
from hasten.plugins.video_infinity.processes import Processes
from hasten.plugins.video_infinity.progress import Progress
from hasten.plugins.video_infinity.session import Session

__all__ = ["Filmed", "write_video"]

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Filmed:
    """A finished video.

    Args:
        path: the file, or the folder of pictures.
        frames: how many.
        rank: this process.
        world: how many processes made it.
        denoise_seconds: wall-clock time of denoising.
        decode_seconds: of decoding and encoding.
        traffic: bytes sent and received by this process and milliseconds it waited, by kind of layer.
    """

    path: Path
    frames: int
    rank: int
    world: int
    denoise_seconds: float
    decode_seconds: float
    traffic: Mapping[str, Mapping[str, float]]


def write_video(
    pipe: Any,
    path: str | Path,
    call: Mapping[str, Any],
    options: Mapping[str, Any] | None = None,
    *,
    techniques: Mapping[str, Any] | None = None,
    fps: Fraction | float = 8,
    codec: str = "libx264",
    tell: Tell = lambda _: None,
) -> Filmed:
    """Make a long video. Every process calls this with the same arguments.

    Args:
        pipe: a video pipeline of a supported family.
        path: ``.mp4``, ``.mov``, ``.mkv``, or a name without an ending for a folder of PNGs, from which those of a
            longer earlier video are removed. On several machines it must be on a disk that all of them see.
        call: arguments of the pipeline call (``prompt``, ``num_frames``, ``num_inference_steps``, ``generator``).
        options: options of ``video_infinity``.
        techniques: other techniques with their options, outside of it.
        fps: frames per second of the file.
        codec: FFmpeg's name of the encoder.
        tell: is told on rank 0 how many frames all processes have written.

    Raises:
        ConfigError: an argument cannot be used.
        RankError: another process failed.
        ConflictError: another run writes there.
        HastenError: the output cannot be written.
    """
    import hasten

    path = Path(path)
    check_output(path, codec)
    configured = {**(techniques or {}), "video_infinity": dict(options or {})}
    decoder = Target.of(pipe).capability(FrameDecoder)
    began = time.perf_counter()
    with ExitStack() as held:
        with hasten.accelerate(pipe, configured), keep_local() as sessions:
            config = VideoInfinityConfig(**configured["video_infinity"])
            processes = join(config, torch.device(pipe._execution_device))
            held.enter_context(processes.hold(path))
            if decoder.independent:  # else rank 0 alone writes
                _require_one_disk(processes, _shared_folder(path))
            output = pipe(**{**call, "return_dict": False})
        session: Session = sessions[-1]
        denoised = time.perf_counter()
        rank, world = session.processes.rank, session.processes.world
        session.processes.where = "while decoding"
        with Progress(session.processes, tell) as progress:
            rate = Fraction(fps).limit_denominator(1001)
            frames = _Job(pipe, session, path, rate, codec, tell, progress).write(output[0], call)
        session.processes.gather("written")
    traffic = {
        kind: {"sent": t.sent, "received": t.received, "milliseconds": t.exposed_milliseconds}
        for kind, t in session.exchange.traffic.items()
    }
    decoded = time.perf_counter()
    return Filmed(path, frames, rank, world, denoised - began, decoded - denoised, traffic)


@dataclass
class _Job:
    """Decoding and encoding on one rank."""

    pipe: Any
    session: Session
    path: Path
    rate: Fraction
    codec: str
    tell: Tell
    progress: Progress

    @torch.no_grad()
    def write(self, local: Tensor, call: Mapping[str, Any]) -> int:
        """Decode this rank's share and put the video together; how many frames it has."""
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
        """Frames in order on rank 0, for autoencoders that look back."""
        if self.session.processes.rank == 0:
            self._film(as_pixels(decoder.frames(self.pipe, latents)), self.path)
            if self.pictures:
                self._forget_pictures()
        self.progress.finish()
        return self.progress.wait([0])

    @property
    def pictures(self) -> bool:
        """Whether the video becomes a folder of pictures."""
        return self.path.suffix == ""

    def _film(self, pieces: Iterable[Tensor], path: Path, first: int = 0) -> None:
        if self.pictures:
            folder = PictureFolder(path, first)
            for piece in pieces:
                folder.write(piece)
                self.progress.add(len(piece))
            return
        with Film(path, self.rate, self.codec) as film:
            for piece in pieces:
                film.write(piece)
                self.progress.add(len(piece))

    def _share(self, decoder: FrameDecoder, latents: Tensor, patch: int) -> int:
        """Every rank its clips, a segment each; rank 0 joins them."""
        processes, places = self.session.processes, self.session.places
        parts = _shared_folder(self.path)
        parts.mkdir(parents=True, exist_ok=True)
        segments = [parts / f"clip-{clip:04d}{self.path.suffix}" for clip in range(len(places.clips))]
        for clip in places.here if processes.branch == 0 else ():
            frames = places.clips[clip]
            start = (frames.start - self.session.held.start) * patch
            part = latents[:, :, start : start + len(frames) * patch]
            pieces = as_pixels(decoder.frames(self.pipe, part))
            self._film(pieces, self.path if self.pictures else segments[clip], frames.start * patch)
        if processes.rank == 0:
            self._put_together(segments, self.session.frames * patch)
        self.progress.finish()
        return self.progress.wait(range(processes.world))

    def _put_together(self, segments: list[Path], frames: int) -> None:
        """Once all other ranks are done."""
        self.progress.wait(range(1, self.session.processes.world))
        if self.pictures:
            self._forget_pictures()
            return
        self.tell(f"joining {len(segments)} segments")
        join_segments(segments, self.path, frames)
        shutil.rmtree(segments[0].parent, ignore_errors=True)

    def _forget_pictures(self) -> None:
        """Remove pictures behind the last one, of a longer video that was in the folder before."""
        count = self.progress.frames
        for file in (*self.path.glob("*.png"), *self.path.glob("*.part")):
            if re.fullmatch(r"\d{6}", file.stem) and (file.suffix == ".part" or int(file.stem) >= count):
                file.unlink()


def _shared_folder(path: Path) -> Path:
    """Where the ranks put their parts of the video."""
    return path if path.suffix == "" else path.with_name(f"{path.name}.parts")


def _require_one_disk(processes: Processes, folder: Path) -> None:
    """Make sure that all ranks see ``folder``, before any work is spent.

    Raises:
        ConfigError: it is on another machine's disk.
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
            f"rank {blind[0]} does not see {folder}, where rank 0 puts the video together: give an output path on a "
            "disk that all machines share"
        )

"""The main job: a long video from a prompt to a file, over as many processes as there are."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hasten._errors import ConfigError, RankError
from hasten.pipelines.adapters._decoders import FrameDecoder
from hasten.plugins.video_infinity.decode import as_pixels, unpacked
from hasten.plugins.video_infinity.divide import gather_latents, keep_local
from hasten.plugins.video_infinity.encode import Film, PictureFolder, check_output, join_segments
from hasten.plugins.video_infinity.processes import Processes
from hasten.plugins.video_infinity.session import Session

__all__ = ["Filmed", "write_video"]

Tell = Callable[[str], None]
_WRITTEN = "frames written"


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
        path: ``.mp4``, ``.mov``, ``.mkv``, or a name without an ending for a folder of PNGs. On several machines it
            must be on a disk that all of them see.
        call: arguments of the pipeline call (``prompt``, ``num_frames``, ``num_inference_steps``, ``generator``).
        options: options of ``video_infinity``.
        techniques: other techniques with their options, outside of it.
        fps: frames per second of the file.
        codec: FFmpeg's name of the encoder.
        tell: is told what goes on, on rank 0.

    Raises:
        ConfigError: an argument cannot be used.
        RankError: another process failed.
        HastenError: the output cannot be written.
    """
    import hasten

    path = Path(path)
    check_output(path, codec)
    configured = {**(techniques or {}), "video_infinity": dict(options or {})}
    began = time.perf_counter()
    with hasten.accelerate(pipe, configured), keep_local() as sessions:
        output = pipe(**{**call, "return_dict": False})
    session: Session = sessions[-1]
    denoised = time.perf_counter()
    rank, world = session.processes.rank, session.processes.world
    session.processes.where = "while decoding"
    job = _Job(
        pipe, session, path, Fraction(fps).limit_denominator(1001), codec, tell if rank == 0 else _nothing
    )
    frames = job.write(output[0], call)
    traffic = {
        kind: {"sent": t.sent, "received": t.received, "milliseconds": t.exposed_milliseconds}
        for kind, t in session.exchange.traffic.items()
    }
    decoded = time.perf_counter()
    return Filmed(path, frames, rank, world, denoised - began, decoded - denoised, traffic)


def _nothing(_: str) -> None:
    pass


@dataclass
class _Job:
    """Decoding and encoding on one rank."""

    pipe: Any
    session: Session
    path: Path
    rate: Fraction
    codec: str
    tell: Tell

    @torch.no_grad()
    def write(self, local: Tensor, call: Mapping[str, Any]) -> int:
        """Decode this rank's share and put the video together; how many frames it has."""
        arguments = self.session.target.call_arguments(**call)
        decoder = self.session.target.capability(FrameDecoder)  # type: ignore[type-abstract]
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
        processes, count, problem = self.session.processes, 0, None
        if processes.rank == 0:
            try:
                count = self._film(as_pixels(decoder.frames(self.pipe, latents)), self.path)
            except Exception as error:
                problem = error
        # The others would wait longer than the group's timeout for a long decode; a store has no such limit.
        counts = _wait_for_rank_0(processes, count, problem is not None)
        if problem is not None:
            raise problem
        return counts

    def _film(self, pieces: Any, path: Path, first: int = 0) -> int:
        count = 0
        if path.suffix == "":
            folder = PictureFolder(path, first)
            for piece in pieces:
                folder.write(piece)
                count += len(piece)
            return count
        with Film(path, self.rate, self.codec) as film:
            for piece in pieces:
                film.write(piece)
                count += len(piece)
                self.tell(f"{count} frames written")
        return count

    def _share(self, decoder: FrameDecoder, latents: Tensor, patch: int) -> int:
        """Every rank its clips, a segment each; rank 0 joins them."""
        session, places = self.session, self.session.places
        parts = self._parts_folder()
        total = session.frames * patch
        for clip in places.here if session.processes.branch == 0 else ():
            frames = places.clips[clip]
            start = (frames.start - session.held.start) * patch
            part = latents[:, :, start : start + len(frames) * patch]
            pieces = as_pixels(decoder.frames(self.pipe, part))
            if self.path.suffix == "":
                self._film(pieces, self.path, frames.start * patch)
            else:
                self._film(pieces, parts / f"clip-{clip:04d}{self.path.suffix}")
        session.processes.gather("decoded")
        if session.processes.rank == 0 and self.path.suffix != "":
            segments = [parts / f"clip-{clip:04d}{self.path.suffix}" for clip in range(len(places.clips))]
            self.tell(f"joining {len(segments)} segments")
            total = join_segments(segments, self.path)
            shutil.rmtree(parts, ignore_errors=True)
        session.processes.gather("joined")
        return total

    def _parts_folder(self) -> Path:
        """The folder of segments, which every rank must see.

        Raises:
            ConfigError: it is on another machine's disk.
        """
        processes = self.session.processes
        parts = self.path.with_name(f"{self.path.name}.parts")
        mark = processes.gather(uuid.uuid4().hex)[0]
        if processes.rank == 0:
            parts.mkdir(parents=True, exist_ok=True)
            (parts / "run").write_text(mark, encoding="utf-8")
        processes.gather("marked")
        try:
            sees = (parts / "run").read_text(encoding="utf-8") == mark
        except OSError:
            sees = False
        blind = [rank for rank, ok in enumerate(processes.gather(sees)) if not ok]
        if blind:
            raise ConfigError(
                f"rank {blind[0]} does not see {parts}, where rank 0 joins the segments: give an output path "
                "on a disk that all machines share"
            )
        return parts


def _wait_for_rank_0(processes: Processes, count: int, failed: bool) -> int:
    """Number of frames that rank 0 wrote. It may take longer than the group's timeout.

    Raises:
        RankError: rank 0 could not write them, or is gone.
    """
    if processes.store is None:
        return count
    try:
        if processes.rank == 0:
            processes.store.set(_WRITTEN, "failed" if failed else str(count))
        while not processes.store.check([_WRITTEN]):
            time.sleep(0.1)
        answer = processes.store.get(_WRITTEN).decode()
    except RuntimeError as error:  # rank 0 keeps the store
        raise processes.explain(error) from error
    processes.gather("read")
    if answer == "failed" and processes.rank != 0:
        raise RankError("rank 0 could not write the video; its own message says why")
    return 0 if answer == "failed" else int(answer)

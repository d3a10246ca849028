"""Video files and folders of pictures: written while frames are decoded, and joined without re-encoding.

A file is written under a temporary name and renamed when it is complete. MP4 files are fragmented, so a truncated one
plays up to the cut.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hasten.extend import ConfigError, HastenError, suggestion

__all__ = ["Encoding", "PictureFolder", "VideoFile", "check_output", "join_segments"]

# Without flushing, small frames stay in a buffer of 32 kB until the end.
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"}
_WAITING = 32
"""Frames that may wait for the encoder."""
_TRIAL_SIDE = 256
"""Side of the test frame; hardware encoders refuse much smaller ones."""


@dataclass(frozen=True)
class Encoding:
    """How frames become a video file.

    Args:
        fps: frames per second, positive.
        codec: FFmpeg's name of the encoder.
    """

    fps: Fraction | float = 8
    codec: str = "libx264"

    @property
    def rate(self) -> Fraction:
        """The frame rate as a fraction that video containers can store."""
        return Fraction(self.fps).limit_denominator(1001)


def check_output(path: Path, codec: str) -> None:
    """Check that an output can be written, before any step is computed.

    Raises:
        ConfigError: PyAV is missing, the codec is unknown or does not fit the container, or the folder is not writable.
    """
    from hasten.commands import prepare_folder

    if path.suffix == "":
        prepare_folder(path)
        return
    prepare_folder(path.parent)
    av = _av(path)
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError as error:
        video = [n for n in av.codecs_available if "264" in n or "265" in n or n in ("mpeg4", "vp9", "av1")]
        raise ConfigError(
            f"codec {codec!r} is unknown here{suggestion(codec, video)} Try libx264 or mpeg4"
        ) from error
    if path.suffix not in (".mp4", ".mov", ".mkv"):
        raise ConfigError(
            f"{path} ends in {path.suffix!r}: use .mp4, .mov or .mkv, or a name without a suffix for a "
            "folder of PNG files"
        )
    _try_codec(av, path, codec)


def _try_codec(av: ModuleType, path: Path, codec: str) -> None:
    """Encode one grey frame in memory.

    Raises:
        ConfigError: the codec cannot write this kind of file.
    """
    kind = {".mkv": "matroska"}.get(path.suffix, path.suffix.removeprefix("."))
    try:
        with av.open(io.BytesIO(), "w", format=kind) as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = _TRIAL_SIDE, _TRIAL_SIDE, "yuv420p"
            grey = np.full((_TRIAL_SIDE, _TRIAL_SIDE, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
    except (OSError, ValueError, AttributeError) as error:  # an audio codec's stream has no size
        raise ConfigError(
            f"codec {codec!r} cannot write {path.suffix} files here ({error}). Try libx264 or mpeg4"
        ) from error


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"writing {path} needs PyAV: pip install 'hasten[video]', or use a name without a suffix for a "
            "folder of PNG files"
        ) from error
    return av


class VideoFile:
    """Writes a video file, encoding in a separate thread; a context manager.

    After an error the file keeps its temporary name and can be played as far as it was written.

    Args:
        path: the file.
        encoding: frame rate and codec.
    """

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.stem}.part{path.suffix}")
        self._encoding = encoding
        self._frames: queue.Queue[npt.NDArray[np.uint8] | None] = queue.Queue(_WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._encode, daemon=True)
        self._thread.start()

    def write(self, frames: Tensor) -> None:
        """Append frames, bytes of shape (f, H, W, 3).

        Raises:
            HastenError: the encoder failed, for example because the disk is full.
        """
        for frame in frames.numpy():
            self._put(frame)
            self._raise_failure()

    def close(self) -> None:
        """Finish the file.

        Raises:
            HastenError: the encoder failed.
        """
        self._put(None)
        self._thread.join()
        self._raise_failure()
        os.replace(self.partial, self.path)

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._put(None)
        self._thread.join(10.0)

    def _put(self, frame: npt.NDArray[np.uint8] | None) -> None:
        """Queue a frame as soon as there is room; drop it if the encoder has ended."""
        while self._thread.is_alive():
            try:
                self._frames.put(frame, timeout=0.5)
                return
            except queue.Full:
                continue

    def _encode(self) -> None:
        try:
            self._encode_all(_av(self.path))
        except BaseException as error:
            self._failure = error

    def _encode_all(self, av: ModuleType) -> None:
        frame = self._frames.get()
        if frame is None:
            raise HastenError(f"{self.path} has no frames")
        options = _FRAGMENTED if self.path.suffix in (".mp4", ".mov") else {}
        with av.open(str(self.partial), "w", options=options) as container:
            stream = container.add_stream(self._encoding.codec, rate=self._encoding.rate)
            height, width = frame.shape[:2]
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            # Segments are joined by copying packets, so no frame may refer to another segment.
            stream.codec_context.max_b_frames = 0
            stream.codec_context.gop_size = max(1, round(self._encoding.rate))
            while frame is not None:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
                container.mux(stream.encode(picture))
                frame = self._frames.get()
            container.mux(stream.encode(None))

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise HastenError(
                f"{self.partial} cannot be written: {self._failure}. What was finished earlier is kept"
            ) from self._failure


class PictureFolder:
    """Frames as numbered PNG files.

    Args:
        folder: the folder, created if needed.
        first: number of the first frame.
    """

    def __init__(self, folder: Path, first: int = 0) -> None:
        self._folder = folder
        self._next = first

    def write(self, frames: Tensor) -> None:
        """Append frames, bytes of shape (f, H, W, 3)."""
        from PIL import Image

        self._folder.mkdir(parents=True, exist_ok=True)
        for frame in frames.numpy():
            path = self._folder / f"{self._next:06d}.png"
            partial = path.with_suffix(".part")
            try:
                Image.fromarray(frame).save(partial, "PNG")
                os.replace(partial, path)
            except OSError as error:
                raise HastenError(
                    f"{path} cannot be written: {error}. The frames before it are kept"
                ) from error
            self._next += 1


def join_segments(segments: Sequence[Path], path: Path, frames: int) -> None:
    """Join segments of equal format into one file by copying packets.

    Args:
        segments: the files, in order.
        path: the joined file.
        frames: number of frames of all segments together.

    Raises:
        HastenError: a segment is missing or damaged, or the file cannot be written.
    """
    av = _av(path)
    partial = path.with_name(f"{path.stem}.part{path.suffix}")
    options = _FRAGMENTED if path.suffix in (".mp4", ".mov") else {}
    try:
        with av.open(str(partial), "w", options=options) as container:
            count = _copy(av, segments, container)
        if count != frames:
            raise ValueError(f"they have {count} frames instead of {frames}")
    except (OSError, ValueError) as error:  # PyAV's errors derive from both
        raise HastenError(
            f"the segments of {path} could not be joined: {error}. They are kept in {segments[0].parent}"
        ) from error
    os.replace(partial, path)


def _copy(av: ModuleType, segments: Iterable[Path], container: Any) -> int:
    stream, count = None, 0
    start = Fraction(0)
    for segment in segments:
        with av.open(str(segment)) as source:
            inner = source.streams.video[0]
            if stream is None:
                stream = container.add_stream_from_template(inner)
            end = start
            for packet in source.demux(inner):
                if packet.size == 0:  # the end of the segment
                    continue
                shift = int(start / packet.time_base)
                packet.pts += shift
                packet.dts = packet.pts  # Matroska stores none; without B-frames both are equal
                duration = packet.duration or int(1 / inner.average_rate / packet.time_base)
                end = max(end, (packet.pts + duration) * packet.time_base)
                packet.stream = stream
                container.mux(packet)
                count += 1
            start = end
    return count

"""Frames to files: pieces of a video as they become ready, joined without encoding again.

Files are written under another name and renamed when they are whole. MP4 files are fragmented, so that one that is cut
short still plays up to there.
"""

from __future__ import annotations

import io
import os
import queue
import threading
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from hasten.extend import ConfigError, HastenError, suggestion

__all__ = ["Film", "PictureFolder", "check_output", "join_segments"]

# Without flushing, small frames wait in a buffer of 32 kB until the end.
_FRAGMENTED = {"movflags": "frag_keyframe+empty_moov", "flush_packets": "1"}
_WAITING = 32
"""Frames that may wait for the encoder."""
_TRIED = 256
"""Side of a frame that encoders in hardware take, too."""


def check_output(path: Path, codec: str) -> None:
    """Refuse an output that could not be written, before any work is spent.

    Raises:
        ConfigError: PyAV is missing, the codec is unknown or does not fit the file, or the folder cannot be written.
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
            f"codec {codec!r} is unknown here{suggestion(codec, video)} Try libx264, or mpeg4"
        ) from error
    if path.suffix not in (".mp4", ".mov", ".mkv"):
        raise ConfigError(
            f"{path} ends in {path.suffix!r}: use .mp4, .mov or .mkv, or a name without an ending for a "
            "folder of PNGs"
        )
    _try_codec(av, path, codec)


def _try_codec(av: Any, path: Path, codec: str) -> None:
    """Encode one grey frame in memory."""
    kind = {".mkv": "matroska"}.get(path.suffix, path.suffix.removeprefix("."))
    try:
        with av.open(io.BytesIO(), "w", format=kind) as container:
            stream = container.add_stream(codec, rate=8)
            stream.width, stream.height, stream.pix_fmt = _TRIED, _TRIED, "yuv420p"
            grey = np.full((_TRIED, _TRIED, 3), 128, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, "rgb24")))
            container.mux(stream.encode(None))
    except (OSError, ValueError, AttributeError) as error:  # an audio codec's stream has no size
        raise ConfigError(
            f"codec {codec!r} cannot write {path.suffix} files here ({error}). Try libx264, or mpeg4"
        ) from error


def _av(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise ConfigError(
            f"writing {path} needs PyAV: pip install 'hasten[video]', or give a name without an ending for a "
            "folder of PNGs"
        ) from error
    return av


class Film:
    """A video file in the making. Encodes in a thread of its own; a context manager.

    After an error the file stays under its partial name, playable up to there.

    Args:
        path: where the file will be.
        rate: frames per second.
        codec: FFmpeg's name of the encoder.
    """

    def __init__(self, path: Path, rate: Fraction, codec: str = "libx264") -> None:
        self.path = path
        self.partial = path.with_name(f"{path.stem}.part{path.suffix}")
        self._rate, self._codec = rate, codec
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
            self._complain()

    def close(self) -> None:
        """Finish the file.

        Raises:
            HastenError: the encoder failed.
        """
        self._put(None)
        self._thread.join()
        self._complain()
        os.replace(self.partial, self.path)

    def __enter__(self) -> Film:
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
        """Hand a frame to the encoder as soon as it has room; nobody makes any where it has failed."""
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

    def _encode_all(self, av: Any) -> None:
        frame = self._frames.get()
        if frame is None:
            raise HastenError(f"{self.path} has no frames")
        options = _FRAGMENTED if self.path.suffix in (".mp4", ".mov") else {}
        with av.open(str(self.partial), "w", options=options) as container:
            stream = container.add_stream(self._codec, rate=self._rate)
            height, width = frame.shape[:2]
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            # Segments are joined by copying packets: no frame may refer to one of another segment.
            stream.codec_context.max_b_frames = 0
            stream.codec_context.gop_size = max(1, round(self._rate))
            while frame is not None:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")
                container.mux(stream.encode(picture))
                frame = self._frames.get()
            container.mux(stream.encode(None))

    def _complain(self) -> None:
        if self._failure is not None:
            raise HastenError(
                f"{self.partial} cannot be written: {self._failure}. What was finished before is kept"
            ) from self._failure


class PictureFolder:
    """Frames as numbered PNG files.

    Args:
        folder: where they go.
        first: number of the first one.
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
    """One file from segments of equal format, by copying packets.

    Args:
        segments: in order.
        path: where the video will be.
        frames: how many they have together.

    Raises:
        HastenError: a segment is missing or damaged, or the disk refuses.
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


def _copy(av: Any, segments: Iterable[Path], container: Any) -> int:
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
                packet.dts = packet.pts  # Matroska keeps none; without frames that look ahead both are equal
                duration = packet.duration or int(1 / inner.average_rate / packet.time_base)
                end = max(end, (packet.pts + duration) * packet.time_base)
                packet.stream = stream
                container.mux(packet)
                count += 1
            start = end
    return count

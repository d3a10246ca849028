"""How the frames of a long video are divided into clips and clips over ranks, and which frames attend to which.

Notation: ``F`` latent frames, clip ``c`` owns ``n_c`` of them; ``h`` frames of context per side; ``N(a)`` is the
window of frame ``a``, ``G`` the frames that every frame sees, ``A(a)`` their union. Nothing here depends on the number
of ranks, so neither does the video.

Source: Video-Infinity, arXiv 2406.16260, sections 4.1 and 4.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "GlobalSampling",
    "Scope",
    "assign",
    "clips_for",
    "compressed",
    "global_frames",
    "partition",
    "window",
]

GlobalSampling = Literal["linspace", "stride", "sink"]
"""``"linspace"`` has both ends of the video among its frames, ``"stride"`` the first only, ``"sink"`` is ``"stride"``
of the rest behind a frame 0 that counts apart."""


def partition(frames: int, clips: int, multiple: int = 1) -> tuple[range, ...]:
    """``frames`` in ``clips`` contiguous parts whose sizes differ by at most ``multiple``, longer ones first.

    >>> partition(13, 3)
    (range(0, 5), range(5, 9), range(9, 13))

    Args:
        frames: latent frames, a multiple of ``multiple``.
        clips: number of parts.
        multiple: every part is a multiple of this (the temporal patch of a transformer).

    Raises:
        ValueError: there are fewer units than clips, or ``frames`` is no multiple.
    """
    units, rest = divmod(frames, multiple)
    if rest:
        raise ValueError(f"{frames} latent frames are no multiple of {multiple}")
    if not 1 <= clips <= units:
        raise ValueError(
            f"{units} {'frames' if multiple == 1 else 'temporal patches'} cannot fill {clips} clips"
        )
    sizes = [units // clips + (index < units % clips) for index in range(clips)]
    parts, start = [], 0
    for size in sizes:
        parts.append(range(start * multiple, (start + size) * multiple))
        start += size
    return tuple(parts)


def clips_for(frames: int, clip_frames: int) -> int:
    """How many clips of at most ``clip_frames`` frames hold ``frames``."""
    return -(-frames // clip_frames)


def assign(clips: int, ranks: int) -> tuple[range, ...]:
    """Runs of consecutive clips for each rank, longer ones first.

    Raises:
        ValueError: there are fewer clips than ranks.
    """
    if ranks > clips:
        raise ValueError(f"{clips} clips cannot occupy {ranks} ranks")
    return partition(clips, ranks)


def window(frame: int, halo: int, frames: int) -> range:
    """``N(a)``: existing frames at most ``halo`` away from ``frame``."""
    return range(max(0, frame - halo), min(frames, frame + halo + 1))


def global_frames(
    frames: int, count: int, sampling: GlobalSampling | Sequence[int] = "linspace"
) -> tuple[int, ...]:
    """``G``: ascending and without repetition; shorter than ``count`` where the video is.

    Args:
        frames: latent frames of the whole video.
        count: how many to choose; 0 for none.
        sampling: how they are spread, or the frames themselves.

    Raises:
        ValueError: a given frame does not exist.
    """
    if not isinstance(sampling, str):
        outside = [frame for frame in sampling if not 0 <= frame < frames]
        if outside:
            raise ValueError(f"global frame {outside[0]} does not exist among {frames} latent frames")
        return tuple(sorted(set(sampling)))
    if count <= 0:
        return ()
    if count >= frames:
        return tuple(range(frames))
    if sampling == "linspace":
        steps = max(count - 1, 1)
        return tuple(sorted({round(k * (frames - 1) / steps) for k in range(count)}))
    if sampling == "stride":
        return tuple(sorted({k * frames // count for k in range(count)}))
    return tuple(sorted({0, *(1 + k * (frames - 1) // max(count - 1, 1) for k in range(count - 1))}))


def compressed(frame: int, frames: int, trained: int | None) -> float:
    """Position of ``frame`` when the whole video is squeezed into the ``trained`` length; never stretched.

    ``p (L - 1) / (F - 1)`` where ``F > L``, else ``p``. Differences then stay in the range the model knows.
    """
    if trained is None or frames <= trained:
        return float(frame)
    return frame * (trained - 1) / (frames - 1)


@dataclass(frozen=True)
class Scope:
    """What the frames of one clip attend to.

    Args:
        frames: latent frames of the whole video.
        clip: frames of this clip.
        halo: ``h``.
        chosen: ``G``.
        block: every frame of the clip sees the whole clip and both halos, instead of its own window.
    """

    frames: int
    clip: range
    halo: int
    chosen: tuple[int, ...] = ()
    block: bool = False

    @property
    def left(self) -> range:
        """Frames of the previous clip within the halo."""
        return range(max(0, self.clip.start - self.halo), self.clip.start)

    @property
    def right(self) -> range:
        """Frames of the next clip within the halo."""
        return range(self.clip.stop, min(self.frames, self.clip.stop + self.halo))

    @property
    def local(self) -> range:
        """Left halo, clip and right halo: the frames whose keys a clip has at hand."""
        return range(self.left.start, self.right.stop)

    def near(self, frame: int) -> range:
        """The local set of a query frame: its window, or the block of the clip."""
        return self.local if self.block else window(frame, self.halo, self.frames)

    def far(self, frame: int) -> tuple[int, ...]:
        """The global set of a query frame without the frames that are in its local set."""
        near = self.near(frame)
        return tuple(other for other in self.chosen if other not in near)

    def seen(self, frame: int) -> int:
        """How many frames a query frame sees: ``|A(a)|``."""
        return len(self.near(frame)) + len(self.far(frame))

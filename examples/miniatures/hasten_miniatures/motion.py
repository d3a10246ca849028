"""Reads place, motion and attributes of the object of a moving scene from frames, without training.

The place is a circular mean, which is also defined for an object across a border. Each frame is then rolled until its
object is in the middle, and read by :func:`hasten.pipelines.mini.parser.observe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasten import ConfigError
from hasten.pipelines.mini.parser import CONTRAST, Observation, observe
from hasten.pipelines.mini.scenes import PLACES
from hasten.pipelines.mini.scoring import PLACE_TOLERANCE, AttributeScorer, AttributeScores
from hasten_miniatures.moving import MOTIONS, MovingScene, parse_moving_caption

if TYPE_CHECKING:
    from hasten.pipelines.mini.judge import Judge

__all__ = [
    "Frames",
    "Reading",
    "VideoClassifier",
    "VideoParser",
    "centred",
    "motion_of",
    "read_video",
    "to_frames",
]

Frames = NDArray[np.float64]

LEAST_SPEED = 0.012
"""Slower objects count as still; the slowest of the data set moves by 0.03 of the side per frame."""
LEAST_SHARE = 0.75
"""Required share of frames with the right attribute."""


@dataclass(frozen=True)
class Reading:
    """What the parser reads from one video.

    Args:
        x, y: place of the object in every frame, (F,), in shares of the side, 0 to 1; NaN if there is no object.
        frames: observations of every frame after its object was moved to the middle.
    """

    x: Frames
    y: Frames
    frames: tuple[Observation, ...]

    @property
    def velocity(self) -> tuple[float, float]:
        """Median step per frame (x, y), in shares of the side, by the shorter way around; NaN if unknown."""
        return _median_step(self.x), _median_step(self.y)

    @property
    def motion(self) -> str | None:
        """The phrase of :data:`MOTIONS`, ``"still"``, or ``None`` for anything else."""
        return motion_of(*self.velocity)


def to_frames(video: Any) -> Frames:
    """A video as (F, H, W, 3), RGB in [0, 1], from PIL images, an array of floats in [0, 1], or an array of bytes.

    Raises:
        ConfigError: it has another shape.
    """
    array = np.stack([np.asarray(frame) for frame in video])
    if array.ndim != 4 or array.shape[-1] != 3 or array.shape[1] != array.shape[2]:
        raise ConfigError(f"a video must be square RGB frames (F, H, H, 3), got {array.shape}")
    return array.astype(np.float64) / (255 if array.dtype == np.uint8 else 1)


def centred(frame: Frames) -> tuple[Frames, float, float]:
    """A frame (H, H, 3) rolled until its object is in the middle, and the place of the object, (x, y) in [0, 1)."""
    background = np.median(frame.reshape(-1, 3), axis=0)
    cover = np.linalg.norm(frame - background, axis=-1)
    cover = np.where(cover > CONTRAST, cover, 0)
    side = len(frame)
    x, y = (_circular_mean(cover.sum(axis), side) for axis in (0, 1))
    if np.isnan(x) or np.isnan(y):
        return frame, x, y
    shift = [round((0.5 - place) * side) for place in (y, x)]
    return np.roll(frame, shift, (0, 1)), x, y


def read_video(video: Any) -> Reading:
    """Parse a video of square frames, in any form that :func:`to_frames` accepts."""
    parts = [centred(frame) for frame in to_frames(video)]
    return Reading(
        x=np.array([x for _, x, _ in parts]),
        y=np.array([y for _, _, y in parts]),
        frames=tuple(observe(frame) for frame, _, _ in parts),
    )


def motion_of(dx: float, dy: float) -> str | None:
    """The motion for a velocity in shares of the side per frame: a phrase, ``"still"``, or ``None`` if diagonal."""
    if np.isnan(dx) or np.isnan(dy):
        return None
    if max(abs(dx), abs(dy)) < LEAST_SPEED:
        return "still"
    if min(abs(dx), abs(dy)) > max(abs(dx), abs(dy)) / 2:
        return None
    sign = (float(np.sign(dx)), 0.0) if abs(dx) > abs(dy) else (0.0, float(np.sign(dy)))
    return next(phrase for phrase, direction in MOTIONS.items() if direction == sign)


class VideoParser:
    """Scores videos with :func:`read_video`: motion, place of still objects, and the attributes by frame."""

    def score(self, videos: Sequence[Any], prompts: Sequence[str]) -> AttributeScores:
        """Compare every video with its prompt.

        Raises:
            ConfigError: if the numbers differ, or a prompt is not a caption of the moving-scenes data set.
        """
        scenes = _scenes(videos, prompts)
        return AttributeScores(tuple(_verdict(scene, read_video(v)) for scene, v in zip(scenes, videos)))


class VideoClassifier:
    """Scores the frames of videos, with their object in the middle, by the attribute classifier of still pictures.

    Args:
        judge: see :class:`hasten.pipelines.mini.scoring.AttributeScorer`.
        device: torch device.
    """

    def __init__(self, judge: Judge | None = None, device: str = "cpu") -> None:
        self._scorer = AttributeScorer(judge, device)

    def score(self, videos: Sequence[Any], prompts: Sequence[str]) -> AttributeScores:
        """Compare every video with its prompt; see :meth:`VideoParser.score`. It does not judge motion."""
        from PIL import Image

        verdicts = []
        for scene, video in zip(_scenes(videos, prompts), videos):
            middles = [centred(frame)[0] for frame in to_frames(video)]
            images = [Image.fromarray((frame * 255).round().astype(np.uint8)) for frame in middles]
            caption = scene.as_scene("in the centre").caption()
            frames = self._scorer.score(images, [caption] * len(images)).verdicts
            names = [name for name in frames[0] if not name.startswith("place")]
            verdicts.append({name: _mostly([frame[name] for frame in frames]) for name in names})
        return AttributeScores(tuple(verdicts))


def _verdict(scene: MovingScene, seen: Reading) -> dict[str, bool]:
    single = [frame.objects[0] if len(frame.objects) == 1 else None for frame in seen.frames]
    verdict = {
        "motion 1": seen.motion == (scene.path if scene.moves else "still"),
        "background": _mostly([frame.background == scene.background for frame in seen.frames]),
        "count 1": _mostly([item is not None for item in single]),
    }
    for name in ("size", "colour", "shape"):
        verdict[f"{name} 1"] = _mostly([getattr(item, name, None) == getattr(scene, name) for item in single])
    if not scene.moves:
        x, y = PLACES[scene.path]
        distance = np.maximum(np.abs(seen.x - x), np.abs(seen.y - y))
        verdict["place 1"] = _mostly(list(distance <= PLACE_TOLERANCE))
    return verdict


def _mostly(right: Sequence[bool]) -> bool:
    return bool(np.mean(right) >= LEAST_SHARE)


def _circular_mean(weights: Frames, side: int) -> float:
    if not weights.any():
        return float("nan")
    angle = np.angle((weights * np.exp(2j * np.pi * (np.arange(side) + 0.5) / side)).sum())
    return float(angle / (2 * np.pi) % 1)


def _median_step(places: Frames) -> float:
    steps = (np.diff(places) + 0.5) % 1 - 0.5
    steps = steps[~np.isnan(steps)]
    return float(np.median(steps)) if len(steps) else float("nan")


def _scenes(videos: Sequence[Any], prompts: Sequence[str]) -> list[MovingScene]:
    if len(videos) != len(prompts):
        raise ConfigError(f"{len(videos)} videos but {len(prompts)} prompts; give one prompt per video")
    return [parse_moving_caption(prompt) for prompt in prompts]

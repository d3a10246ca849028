"""Share of the requested attributes in a picture, by a classifier and by a parser without training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hasten.extend import ConfigError
from hasten.pipelines.mini.parser import Found, Observation, observe
from hasten.pipelines.mini.scenes import PLACES, ROW_OFFSETS, ObjectGroup, Scene, parse_caption

if TYPE_CHECKING:
    from PIL.Image import Image

    from hasten.pipelines.mini.judge import Judge

__all__ = ["AttributeScorer", "AttributeScores", "PixelParser", "compare"]

PLACE_TOLERANCE = 0.12
"""Largest distance along either axis from the requested place; places are 0.25 apart and jitter by 0.03."""


@dataclass(frozen=True)
class AttributeScores:
    """Requested attributes of every prompt, and whether the picture has them.

    Args:
        verdicts: for each prompt, attribute (``"colour 1"``, ``"background"``, ...) -> whether the picture has it.
    """

    verdicts: tuple[Mapping[str, bool], ...]

    @property
    def asked(self) -> tuple[int, ...]:
        """Number of requested attributes of each prompt."""
        return tuple(len(verdict) for verdict in self.verdicts)

    @property
    def right(self) -> tuple[int, ...]:
        """Number of these attributes that each picture has."""
        return tuple(sum(verdict.values()) for verdict in self.verdicts)

    @property
    def mean(self) -> float:
        """Share of all requested attributes that are present."""
        return sum(self.right) / sum(self.asked)

    def by_attribute(self) -> dict[str, float]:
        """Share of present attributes for each kind (``colour``, ``shape``, ...)."""
        asked: Counter[str] = Counter()
        right: Counter[str] = Counter()
        for verdict in self.verdicts:
            for attribute, present in verdict.items():
                asked[attribute.split()[0]] += 1
                right[attribute.split()[0]] += present
        return {kind: right[kind] / asked[kind] for kind in asked}


class PixelParser:
    """Scores pictures with :func:`hasten.pipelines.mini.parser.observe`."""

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> AttributeScores:
        """Compare every picture with its prompt.

        Raises:
            ConfigError: the numbers differ, or a prompt is not a caption of the data set.
        """
        scenes = _scenes(images, prompts)
        pixels = [np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in images]
        return AttributeScores(tuple(compare(scene, observe(p)) for scene, p in zip(scenes, pixels)))


class AttributeScorer:
    """Scores pictures with an attribute classifier.

    Args:
        judge: the classifier or its folder; by default the bundled one.
        device: torch device.
    """

    def __init__(self, judge: Judge | str | Path | None = None, device: str = "cpu") -> None:
        from hasten.pipelines.mini.judge import Judge, load_judge

        if not isinstance(judge, Judge):
            bundled = Path(__file__).with_name("weights") / "scorers" / "judge"
            judge = load_judge(Path(judge) if judge is not None else bundled)
        self._judge = judge.to(device)
        self._device = device

    def score(self, images: Sequence[Image], prompts: Sequence[str]) -> AttributeScores:
        """Compare every picture, as read by the classifier, with its prompt.

        Raises:
            ConfigError: the numbers differ, or a prompt is not a caption of the data set.
        """
        from hasten.pipelines.mini.judge import read_scenes, to_tensor

        scenes = _scenes(images, prompts)
        read = read_scenes(self._judge, to_tensor(images).to(self._device))
        return AttributeScores(tuple(_compare_scenes(asked, seen) for asked, seen in zip(scenes, read)))


def compare(scene: Scene, seen: Observation) -> dict[str, bool]:
    """Attributes of ``scene`` -> whether ``seen`` has them, with the best assignment of objects.

    ``count`` is right only if the picture has exactly as many objects as the whole scene.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    slots = [(group, offset) for group in scene.groups for offset in ROW_OFFSETS[group.count]]
    cost = np.array(
        [[_disagreement(group, offset, item) for item in seen.objects] for group, offset in slots]
    )
    cost = cost.reshape(len(slots), len(seen.objects))
    chosen: dict[int, Found] = {
        row: seen.objects[column] for row, column in zip(*linear_sum_assignment(cost))
    }
    verdict = {"background": seen.background == scene.background}
    for number, group in enumerate(scene.groups, 1):
        rows = [row for row, (owner, _) in enumerate(slots) if owner is group]
        items = [chosen[row] for row in rows if row in chosen]
        verdict[f"count {number}"] = len(seen.objects) == len(slots)
        verdict[f"size {number}"] = bool(items) and all(item.size == group.size for item in items)
        verdict[f"colour {number}"] = bool(items) and all(item.colour == group.colour for item in items)
        verdict[f"shape {number}"] = bool(items) and all(item.shape == group.shape for item in items)
        verdict[f"place {number}"] = bool(items) and _at_place(group, items)
    return verdict


def _disagreement(group: ObjectGroup, offset: float, item: Found) -> float:
    x, y = PLACES[group.place]
    wrong = (item.shape != group.shape) + (item.colour != group.colour) + (item.size != group.size)
    return wrong + 4 * float(np.hypot(item.x - x - offset, item.y - y))


def _at_place(group: ObjectGroup, items: Sequence[Found]) -> bool:
    x, y = PLACES[group.place]
    dx = np.mean([item.x for item in items]) - x
    dy = np.mean([item.y for item in items]) - y
    return bool(max(abs(dx), abs(dy)) <= PLACE_TOLERANCE)


def _compare_scenes(asked: Scene, seen: Scene) -> dict[str, bool]:
    verdict = {"background": asked.background == seen.background}
    for number, group in enumerate(asked.groups, 1):
        other = seen.groups[number - 1] if number <= len(seen.groups) else None
        alike = len(seen.groups) == len(asked.groups)
        verdict[f"count {number}"] = alike and other is not None and other.count == group.count
        for attribute in ("size", "colour", "shape", "place"):
            verdict[f"{attribute} {number}"] = getattr(other, attribute, None) == getattr(group, attribute)
    return verdict


def _scenes(images: Sequence[Image], prompts: Sequence[str]) -> list[Scene]:
    if len(images) != len(prompts):
        raise ConfigError(f"{len(images)} images but {len(prompts)} prompts; give one prompt per image")
    return [parse_caption(prompt) for prompt in prompts]

"""Which prompts a reader should look at, and their pictures as part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.eval.compare.engine import BASELINE

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SIDE", "WORST", "Chosen", "choose_prompts", "data_uri"]

SIDE = 256
"""Longest side of an embedded picture in pixels; larger ones are shrunk."""
FRAMES_PER_SECOND = 8
"""Of a video in the page."""
WORST = 3
"""Worst prompts shown for each metric and configuration, beside the median one."""


@dataclass
class Chosen:
    """A prompt to show, and why: (``"worst"`` or ``"median"``, metric) -> configurations."""

    index: int
    reasons: dict[tuple[str, str], list[str]] = field(default_factory=dict)


def choose_prompts(document: Mapping[str, Any]) -> list[Chosen]:
    """The worst and the median prompt by every metric that has a score per picture, in the order of the prompts.

    A metric of one picture is judged by its change against the baseline (a prompt that lost nothing is no worst one),
    a metric that compares with the baseline by itself.
    """
    found: dict[int, Chosen] = {}
    candidates = [arm["name"] for arm in document["arms"] if arm["role"] == "candidate"]
    for metric, scores in document["scores"].items():
        sign = 1.0 if document["metrics"][metric]["higher_is_better"] else -1.0
        for arm in candidates:
            merit = sign * np.asarray(scores[arm])
            if BASELINE in scores:
                merit = merit - sign * np.asarray(scores[BASELINE])
            # Stable, so that ties always show the same prompts.
            order = np.argsort(merit, kind="stable")
            lost = [int(i) for i in order[:WORST] if BASELINE not in scores or merit[i] < 0]
            picks = [("worst", i) for i in lost] + [("median", int(order[len(order) // 2]))]
            for why, index in picks:
                found.setdefault(index, Chosen(index)).reasons.setdefault((why, metric), []).append(arm)
    return [found[index] for index in sorted(found)]


def data_uri(frames: Sequence[Image]) -> str:
    """A picture inside a URI: untouched as PNG where it is small, else shrunk and as JPEG; a video as moving PNG."""
    from PIL import Image as Images

    buffer = io.BytesIO()
    image = frames[0]
    if len(frames) > 1:
        small = [frame.convert("RGB") for frame in frames]
        for frame in small:
            frame.thumbnail((SIDE, SIDE), Images.Resampling.LANCZOS)
        small[0].save(
            buffer,
            format="PNG",
            save_all=True,
            append_images=small[1:],
            duration=1000 // FRAMES_PER_SECOND,
            loop=0,
        )
        kind = "png"
    elif max(image.size) <= SIDE:
        image.save(buffer, format="PNG", optimize=True)
        kind = "png"
    else:
        picture = image.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Images.Resampling.LANCZOS)
        picture.save(buffer, format="JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

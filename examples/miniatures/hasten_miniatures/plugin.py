"""Registers the models, the metrics of moving scenes and the command ``hasten mini`` with ``hasten``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten import Captions, Model, hookimpl
from hasten.pipelines.mini.plugin import SCENES

if TYPE_CHECKING:
    import typer

    from hasten.pipelines.mini.scenes import Split

WEIGHTS = Path(__file__).with_name("weights")
_STILL = ("t2i-dit-4096", "t2i-unet", "var", "infinity")
_MOVING = ("t2v-dit", "t2v-unet")
_METRICS = {
    "mini_motion": ("Motion", "miniature: share of the videos with the requested motion"),
    "mini_video_parser": (
        "MovingParser",
        "miniature: share of the requested attributes, by a parser of the frames",
    ),
    "mini_video_classifier": (
        "MovingClassifier",
        "miniature: share of the requested attributes, by a classifier of the frames",
    ),
}
"""Name -> (class in ``metrics.py``, one line)."""


def _caption(seed: int, index: int, split: Split) -> str:
    from hasten_miniatures.moving import sample_moving_scene

    return sample_moving_scene(seed, index, split).caption()


def _contains(text: str) -> bool:
    from hasten_miniatures.moving import is_moving_caption

    return is_moving_caption(text)


MOVING_SCENES = Captions(
    _caption,
    _contains,
    ("mini_motion", "mini_video_classifier", "mini_video_parser", "frame_consistency", "psnr", "ssim"),
)
"""The moving scenes."""


@hookimpl
def hasten_register_models(register: Callable[[Model], None]) -> None:
    """Offer the miniatures of this distribution."""
    for names, captions in ((_STILL, SCENES), (_MOVING, MOVING_SCENES)):
        for name in names:
            register(Model(f"mini/{name}", WEIGHTS / name, captions))


def _make(class_name: str, **options: Any) -> Any:
    return getattr(import_module("hasten_miniatures.metrics"), class_name)(**options)


@hookimpl
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Offer the metrics of moving scenes."""
    for name, (class_name, summary) in _METRICS.items():
        register(name, partial(_make, class_name), summary)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Offer ``hasten mini``."""
    from hasten_miniatures.commands import app as commands

    app.add_typer(commands, name="mini")

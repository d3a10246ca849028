"""Adds the miniature metrics and the commands of evaluation; a metric is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hasten._hookspecs import hookimpl

if TYPE_CHECKING:
    import typer

__all__ = ["MINIATURE_METRICS"]

#: Name -> (class, one line). For pictures of the miniatures only, never comparable with published figures.
MINIATURE_METRICS = {
    "mini_classifier": (
        "Classifier",
        "miniature: share of the attributes asked for, by a learned classifier",
    ),
    "mini_parser": (
        "Parser",
        "miniature: share of the attributes asked for, by a parser that learned nothing",
    ),
    "mini_motion": ("Motion", "miniature: share of the videos that move as asked"),
    "mini_video_parser": (
        "MovingParser",
        "miniature: share of the attributes asked for, by a parser of the frames",
    ),
    "mini_video_classifier": (
        "MovingClassifier",
        "miniature: share of the attributes asked for, by a classifier of the frames",
    ),
    "mini_text_image": ("TextImage", "miniature: image-prompt cosine of the miniature contrastive model"),
    "mini_frechet": ("Frechet", "miniature: Frechet distance of its features to true renders (not FID)"),
    "mini_mmd": ("Mmd", "miniature: kernel distance of its features to true renders (not CMMD)"),
}


_OF_VIDEOS = ("Motion", "MovingParser", "MovingClassifier")


def _factory(class_name: str) -> Callable[..., Any]:
    module = "moving" if class_name in _OF_VIDEOS else "miniature"

    def make(**options: Any) -> Any:
        return getattr(import_module(f"hasten.eval.compare.{module}"), class_name)(**options)

    return make


@hookimpl
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Offer the metrics of the miniatures."""
    for name, (class_name, summary) in MINIATURE_METRICS.items():
        register(name, _factory(class_name), summary)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add ``demo``, ``compare`` and ``eval``."""
    for module in ("demo", "compare", "folders"):
        import_module(f"hasten.eval.compare.commands.{module}").register(app)

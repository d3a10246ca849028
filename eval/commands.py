"""Adds the miniature metrics and the commands of evaluation; a metric is loaded when it is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from hasten.extend import hookimpl

if TYPE_CHECKING:
    import typer

__all__ = ["MINIATURE_METRICS"]

#: Name -> (module and class in ``hasten.eval.compare``, one line). For what the miniatures make, never comparable with
#: published figures.
MINIATURE_METRICS = {
    "mini_classifier": (
        "miniature.Classifier",
        "miniature: share of the attributes asked for, by a learned classifier",
    ),
    "mini_parser": (
        "miniature.Parser",
        "miniature: share of the attributes asked for, by a parser that learned nothing",
    ),
    "mini_text_image": (
        "miniature.TextImage",
        "miniature: image-prompt cosine of the miniature contrastive model",
    ),
    "mini_frechet": (
        "miniature.Frechet",
        "miniature: Frechet distance of its features to true renders (not FID)",
    ),
    "mini_mmd": ("miniature.Mmd", "miniature: kernel distance of its features to true renders (not CMMD)"),
}


def _factory(place: str) -> Callable[..., Any]:
    module, class_name = place.split(".")

    def make(**options: Any) -> Any:
        return getattr(import_module(f"hasten.eval.compare.{module}"), class_name)(**options)

    return make


@hookimpl
def hasten_register_metrics(register: Callable[[str, Callable[..., Any], str], None]) -> None:
    """Offer the metrics of the miniatures."""
    for name, (place, summary) in MINIATURE_METRICS.items():
        register(name, _factory(place), summary)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add ``demo``, ``compare`` and ``eval``."""
    for module in ("demo", "compare", "folders"):
        import_module(f"hasten.eval.compare.commands.{module}").register(app)

"""Pipelines that :func:`hasten.load` knows by name, and the data sets of captions they were trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from hasten._errors import CheckpointError, ConfigError
from hasten._files import read_fields

__all__ = ["Captions", "Model", "Settings", "Split", "read_settings"]

Split = Literal["train", "held_out"]
"""Combinations of attributes seen in training, or those that were held out of it."""

_PROMPT_STREAM = 2**41
"""Prompts come from streams of captions that no training run draws from."""


@dataclass(frozen=True)
class Captions:
    """A data set whose captions say what a sample must show.

    Args:
        sample: ``sample(seed, index, split)`` gives one caption.
        contains: whether a text is a caption of the data set.
        metrics: names of the metrics that are measured by default where all prompts are such captions.
    """

    sample: Callable[[int, int, Split], str]
    contains: Callable[[str], bool]
    metrics: tuple[str, ...] = ()

    def prompts(self, n: int, seed: int = 0, split: Split = "train") -> list[str]:
        """``n`` different captions.

        Raises:
            ConfigError: the split has fewer.
        """
        found: dict[str, None] = {}
        for index in range(200 * n + 1000):
            if len(found) == n:
                return list(found)
            found[self.sample(_PROMPT_STREAM + seed, index, split)] = None
        raise ConfigError(f"the {split!r} split has fewer than {n} different captions; request fewer")


@dataclass(frozen=True)
class Model:
    """A pipeline with a name.

    Args:
        name: what :func:`hasten.load` is given, as ``"mini/t2i-dit"``.
        folder: where the saved pipeline lies, with a ``hasten.json`` that holds the recommended call.
        captions: the data set it was trained on.
    """

    name: str
    folder: Path
    captions: Captions

    @property
    def call(self) -> dict[str, Any]:
        """Arguments the pipeline is meant to be called with: steps, guidance, size.

        Raises:
            CheckpointError: the folder has no ``hasten.json``, or a damaged one.
        """
        return read_settings(self.folder).call


class Settings(BaseModel):
    """The ``hasten.json`` of a saved miniature.

    Args:
        product: name, without the ``mini/``.
        call: arguments it is meant to be called with.
        absent: components it does not have.
    """

    product: str
    call: dict[str, Any]
    absent: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """The ``hasten.json`` of a saved miniature.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    file = folder / "hasten.json"
    if not file.exists():
        raise CheckpointError(f"{folder} has no hasten.json with the recommended call")
    return read_fields(
        file, Settings, "the settings of a miniature", "reinstall it, or export the miniature again"
    )

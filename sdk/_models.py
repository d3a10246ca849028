"""Pipelines that :func:`hasten.load` knows by name, and the data sets of captions they were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hasten._errors import CheckpointError, ConfigError

__all__ = ["Captions", "Model", "Split", "read_settings"]

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
        raise ConfigError(f"the {split!r} split has fewer than {n} different captions; ask for fewer")


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
            CheckpointError: the folder has no ``hasten.json``.
        """
        call: dict[str, Any] = read_settings(self.folder)["call"]
        return call


def read_settings(folder: Path) -> dict[str, Any]:
    """The ``hasten.json`` of a saved miniature.

    Raises:
        CheckpointError: there is none.
    """
    file = folder / "hasten.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} has no hasten.json, which would hold the recommended call")
    settings: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return settings

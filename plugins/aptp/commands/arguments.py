"""Arguments and options that the commands share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from hasten import commands as common
from hasten.commands import hold_folder

if TYPE_CHECKING:
    from hasten.commands import Placement
    from hasten.plugins.aptp.make.context import TrainingContext

__all__ = [
    "Batch",
    "BundleFolder",
    "BundleOut",
    "FullDtype",
    "ModelName",
    "Rounds",
    "Stage",
    "TimedStage",
    "Work",
    "shares",
]

ModelName = Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")]
BundleFolder = Annotated[Path, typer.Argument(help="A bundle.")]
BundleOut = Annotated[Path, typer.Argument(help="Where to write the bundle.")]
Work = Annotated[Path, typer.Option("--work", help="Work folder with the results of all stages.")]
Batch = Annotated[int, typer.Option(min=1, help="Samples in a forward.")]
Rounds = Annotated[int, typer.Option(min=3, help="Interleaved repetitions.")]
Grain = Annotated[
    int, typer.Option("--ffn", min=1, help="Channels per feed-forward unit; must be the same in every stage.")
]
FullDtype = Annotated[
    str | None, typer.Option("--dtype", help="float32, bfloat16 or float16. (default: float32)")
]
"""Of commands that compute gradients, or what is stored for good."""


@dataclass(frozen=True)
class Stage:
    """Where every stage after ``prepare`` works.

    Raises:
        ConfigError: there is no such device or number format.
    """

    default_dtype: ClassVar[str | None] = "float32"

    work: Work = Path("aptp")
    ffn: Grain = 64
    device: common.Device = None
    dtype: FullDtype = None

    def __post_init__(self) -> None:
        self._place()  # refused before anything is read

    def _place(self) -> Placement:
        return common.choose_place(None, self.device, self.dtype, default_dtype=self.default_dtype)

    @contextmanager
    def opened(self, command: typer.Context, model: str, *, timed: bool = False) -> Iterator[TrainingContext]:
        """The model with its prepared data, in the process group that a launcher asks for.

        Args:
            command: the running command, which keeps the work folder locked.
            model: folder, hub id or miniature.
            timed: budgets are shares of the time in the work folder's latency table.
        """
        from accelerate import PartialState  # type: ignore[import-untyped]

        from hasten.plugins.aptp.make.context import TrainingContext
        from hasten.plugins.aptp.make.data import Prepared
        from hasten.plugins.aptp.manifest import GrainEntry

        place = self._place()
        data = Prepared.load(self.work)
        hold_folder(command, self.work, "--work")
        state = PartialState(cpu=place.device == "cpu")
        try:
            pipe = common.load_quietly(model, place)
            table = self.work if timed else None
            yield TrainingContext.of(pipe, data, GrainEntry(ffn=self.ffn), table)
        finally:
            state.destroy_process_group()


@dataclass(frozen=True)
class TimedStage(Stage):
    """The stage that measures time, in the number format in which a bundle will be used."""

    default_dtype: ClassVar[str | None] = None

    dtype: common.Dtype = None


def shares(text: str) -> tuple[float, ...]:
    """The numbers of ``--budgets``.

    Raises:
        ConfigError: one of them is not a number.
    """
    from hasten.extend import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--budgets: expected shares like 0.5,0.8, got {text!r}") from error

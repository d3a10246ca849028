"""The options of every stage, each declared once: for the command line and for calls from Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hasten.extend import ConfigError

__all__ = [
    "CompareOptions",
    "ExportOptions",
    "OneShotOptions",
    "PrepareOptions",
    "SearchOptions",
    "TuneOptions",
    "TunedWeights",
]

TunedWeights = Literal["lora", "shared", "full"]
Seed = Annotated[int, typer.Option(help="Random seed.")]
StepBatch = Annotated[int, typer.Option(min=1, help="Prompts in a step.")]
Rate = Annotated[float, typer.Option("--learning-rate", help="Peak.")]
CalibrationPrompts = Annotated[int, typer.Option(min=8, help="Calibration prompts.")]


@dataclass(frozen=True)
class PrepareOptions:
    """What is encoded: captioned pictures, or scenes for a miniature, at a size in pixels."""

    data: Annotated[
        Path | None, typer.Option(help="Folder of pictures with captions. (default: scenes, for a miniature)")
    ] = None
    count: Annotated[int, typer.Option(min=1, help="Number of scenes to draw, without --data.")] = 2000
    height: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None
    width: Annotated[int | None, typer.Option(min=8, help="Pixels. (default: the model's own)")] = None
    encoder: Annotated[str, typer.Option(help="Text encoder component, or a sentence model.")] = (
        "text_encoder"
    )


@dataclass(frozen=True)
class SearchOptions:
    """How plans are searched.

    Raises:
        ConfigError: ``budgets`` (ascending shares of the model's cost, one for each expert) do not ascend, or do not
            lie in (0, 1].
    """

    preset: Annotated[Literal["improved", "paper"], typer.Option(help="Recipe.")] = "improved"
    budgets: tuple[float, ...] = (0.42, 0.55, 0.7, 0.88)
    steps: Annotated[int, typer.Option(min=0, help="Search steps; 0 keeps the initial plans.")] = 300
    batch: StepBatch = 16
    rate: Rate = 0.02
    seed: Seed = 0
    on: Annotated[
        Literal["macs", "time"], typer.Option(help="Unit of the budgets; time needs `measure` first.")
    ] = "macs"
    nested: Annotated[
        bool, typer.Option("--nested", help="Cheaper experts keep a subset of the units of costlier ones.")
    ] = False
    importance_batches: int = 8
    """Batches from which the initial importance of units is estimated."""

    def __post_init__(self) -> None:
        _check_budgets(self.budgets)
        if list(self.budgets) != sorted(self.budgets):
            raise ConfigError(f"--budgets has to ascend, not {list(self.budgets)}")


@dataclass(frozen=True)
class TuneOptions:
    """How experts are trained.

    Raises:
        ConfigError: a number is out of its range.
    """

    weights: Annotated[
        TunedWeights,
        typer.Option(
            help="Trained weights: a low-rank update per expert, one shared by all, or all weights."
        ),
    ] = "lora"
    rank: Annotated[int, typer.Option(min=1, help="Rank of the low-rank updates.")] = 4
    steps: Annotated[int, typer.Option(min=0, help="Steps per expert.")] = 400
    batch: StepBatch = 16
    rate: Rate = 2e-3
    truth: float = 0.2
    """Weight of the denoising loss; the distillation of the output has weight 1."""
    blocks: float = 0.2
    """Weight of the distillation of the output of every stage of the denoiser."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.steps < 0 or self.batch < 1:
            raise ConfigError(f"--rank and --batch have to be at least 1, --steps at least 0: {self}")


@dataclass(frozen=True)
class ExportOptions:
    """How the router is fitted to the errors of the experts."""

    mean_cost: Annotated[
        float | None, typer.Option(help="Mean share of the cost. (default: middle of the experts')")
    ] = None
    prompts: CalibrationPrompts = 512
    draws: Annotated[int, typer.Option(min=1, help="Noise draws per prompt, at four levels.")] = 2
    segments: Annotated[
        int, typer.Option(min=1, max=8, help="Timestep segments of a route, each with its own expert.")
    ] = 1
    seed: Seed = 0


@dataclass(frozen=True)
class OneShotOptions:
    """How experts are cut without training.

    Raises:
        ConfigError: ``budgets`` (shares of the model's cost, one for each expert) do not lie in (0, 1].
    """

    budgets: tuple[float, ...] = (0.8, 0.9)
    prompts: CalibrationPrompts = 128
    clusters: Annotated[int, typer.Option(min=1, help="Prompt clusters, each with its own experts.")] = 1
    damping: float = 0.01
    """Added to the diagonals of the least-squares problems, as a share of their mean."""
    seed: Seed = 0

    def __post_init__(self) -> None:
        _check_budgets(self.budgets)


@dataclass(frozen=True)
class CompareOptions:
    """What a bundle is compared on."""

    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="File with prompts: text (one per line), JSON Lines, JSON, CSV or TSV. (default: a miniature's own)",
        ),
    ] = None
    num_prompts: Annotated[int, typer.Option("--num-prompts", min=2, help="Number of pictures per row.")] = 64
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 1
    fewer_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the equal-time control. (default: measured first)")
    ] = None
    seed: Seed = 0


def _check_budgets(budgets: tuple[float, ...]) -> None:
    if not budgets or not all(0 < budget <= 1 for budget in budgets):
        raise ConfigError(f"--budgets has to list shares between 0 and 1, not {list(budgets)}")

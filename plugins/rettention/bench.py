"""``hasten bench attention``: sparse attention and the fastest dense attention, measured alternately in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as common
from hasten.eval.bench.show import show
from hasten.extend import ConfigError, suggestion

if TYPE_CHECKING:
    from hasten.commands import Placement
    from hasten.plugins.rettention.config import RettentionConfig
    from hasten.plugins.rettention.measured import Measured, Problem

__all__ = ["SHAPES", "register"]

#: Name -> (batch, heads, channels, frames, rows, columns, text in front). Batches hold both guidance branches.
SHAPES: dict[str, tuple[int, int, int, int, int, int, int]] = {
    "n4096": (1, 4, 64, 1, 64, 64, 0),
    "pixart-1024": (2, 16, 72, 1, 64, 64, 0),
    "pixart-2048": (2, 16, 72, 1, 128, 128, 0),
    "flux-2048": (1, 24, 128, 1, 128, 128, 512),
    "cogvideox-2b": (2, 30, 64, 13, 30, 45, 226),
    "cogvideox-5b": (2, 48, 64, 13, 30, 45, 226),
    "wan-480p": (1, 12, 128, 21, 30, 52, 0),
    "wan-720p": (1, 40, 128, 21, 45, 80, 0),
}

_HELP = f"""Sparse attention next to dense attention: milliseconds in turns, their ratio with its interval, true
density, and the error against attention in double precision.

The shapes are those of one layer of a published model: {", ".join(SHAPES)}. On a small machine, lower --heads and
--batch; the ratio depends little on them.

[bold]Examples[/]

  hasten bench attention
  hasten bench attention --shape pixart-1024 --keep-ratio 0.0625 --keep-ratio 0.03125
  hasten bench attention --shape cogvideox-5b --heads 2 --batch 1 --mask tile3d
"""


def register(group: typer.Typer) -> None:
    """Add the command to ``group``."""
    group.command("attention", help=_HELP)(_command)


def _command(
    shape: Annotated[
        list[str] | None, typer.Option(help="Attention shape; repeatable. (default: n4096, pixart-1024)")
    ] = None,
    keep_ratio: Annotated[
        list[float] | None, typer.Option(help="Nominal share of kept keys; repeatable. (default: 0.0625)")
    ] = None,
    mask: Annotated[str, typer.Option(help="Mask of the technique.")] = "block",
    tile: Annotated[int | None, typer.Option(min=1, help="Positions per tile. (default: chosen)")] = None,
    kernel: Annotated[str, typer.Option(help="Kernel, or auto.")] = "auto",
    heads: Annotated[int | None, typer.Option(min=1, help="Number of heads. (default: the shape's)")] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Number of samples. (default: the shape's)")
    ] = None,
    dtype: common.Dtype = "float32",
    device: common.Device = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. (default: torch's default)")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each measures every variant.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    import torch

    from hasten.plugins.rettention.measured import measure

    place = common.choose_place(None, device, dtype)
    if threads is not None:
        torch.set_num_threads(threads)
    options = {"mask": mask, "kernel": kernel, "tile": tile or "auto"}
    problems = [
        _problem(name, _config({**options, "keep_ratio": ratio}), (batch, heads), place)
        for name in shape or ["n4096", "pixart-1024"]
        for ratio in keep_ratio or [0.0625]
    ]
    found = [measure(problem, rounds) for problem in problems]
    title = "attention of one layer"
    notes = list({one.problem.name: one.describe() for one in found}.values())
    show(title, [one.to_dict() if as_json else _row(one) for one in found], notes, as_json=as_json)


def _config(options: dict[str, Any]) -> RettentionConfig:
    """The technique's options from the command line."""
    from pydantic import ValidationError

    from hasten.plugins.rettention.config import RettentionConfig

    try:
        return RettentionConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option} {first['input']}: {first['msg']}") from error


def _problem(
    name: str, config: RettentionConfig, size: tuple[int | None, int | None], place: Placement
) -> Problem:
    """A shape under a mask; ``size`` is the number of samples and heads, if not the shape's."""
    import torch

    from hasten.extend import TokenGrid
    from hasten.plugins.rettention.measured import Problem

    if name not in SHAPES:
        raise ConfigError(
            f"--shape {name}: there is no such shape{suggestion(name, SHAPES)} {', '.join(SHAPES)}"
        )
    samples, heads, dim, frames, rows, columns, text = SHAPES[name]
    grid = TokenGrid(frames, rows, columns, before=text)
    device = torch.device(place.device)
    return Problem(name, grid, size[0] or samples, size[1] or heads, dim, config, place.torch_dtype, device)


def _row(one: Measured) -> dict[str, Any]:
    """A line of the table."""
    ratio, problem = one.ratio, one.problem
    return {
        "shape": problem.name,
        "mask": f"{problem.config.mask} {problem.config.keep_ratio}",
        "kept": f"{one.density:.2%}",
        "kernel": one.kernel,
        "dense ms": f"{one.dense_ms:.1f}",
        "sparse ms": f"{one.sparse_ms:.1f}",
        "dense / sparse": f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}]",
        "error": f"{max(one.error, one.lse_error):.0e}",
    }

"""``hasten aptp bench``, ``speed`` and ``eval``: what a bundle gains, and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hasten import commands as common
from hasten.commands import hold_folder, with_option_groups
from hasten.plugins.aptp.commands.arguments import Batch, BundleFolder, ModelName, Rounds
from hasten.plugins.aptp.make.options import CompareOptions

__all__ = ["register"]

Compiled = Annotated[bool, typer.Option("--compile", help="Compile every model first.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("bench")(_bench)
    app.command("speed")(with_option_groups(_speed))
    app.command("eval")(with_option_groups(_evaluate))


def _bench(
    model: ModelName,
    bundle: BundleFolder,
    batch: Batch = 1,
    rounds: Rounds = 9,
    device: common.Device = None,
    dtype: common.Dtype = None,
    compiled: Compiled = False,
) -> None:
    """Time a forward of every expert and the base, at the size of the bundle."""
    from hasten.plugins.aptp.commands.tables import show_times
    from hasten.plugins.aptp.expert_times import measure

    pipe = common.load_quietly(model, common.choose_place(None, device, dtype))
    show_times(measure(pipe, bundle, batch=batch, rounds=rounds, compiled=compiled))


@dataclass(frozen=True)
class _Trial:
    """How a published shape is pruned and timed."""

    side: Annotated[int, typer.Option(min=8, help="Side of the latents in pixels.")] = 32
    share: Annotated[
        float, typer.Option(min=0.05, max=1, help="Share of the multiply-accumulates to keep.")
    ] = 0.7
    rounds: Rounds = 9
    compiled: Compiled = False


def _speed(
    shape: Annotated[Literal["sd21", "sdxl"], typer.Argument(help="A published U-Net, with random weights.")],
    trial: _Trial,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Batch size; repeatable. (default: 1 and 4)")
    ] = None,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Time a plan with a share of the operations: all groups are cut equally, and no block is removed."""
    from hasten.plugins.aptp.expert_times import even_plan_time, untrained_unet

    place = common.choose_place(None, device, dtype)
    model = untrained_unet(shape).to(place.device, place.torch_dtype)
    for batch in batches or [1, 4]:
        row = even_plan_time(model, batch=batch, **asdict(trial))
        typer.echo(
            f"{shape}, {trial.side} x {trial.side} latents, batch {batch}: {row.macs_share:.1%} of the operations take "
            f"{row.time.value:.1%} of the time ({row.time.low:.1%} to {row.time.high:.1%}), {row.seconds:.3f} s"
        )


def _evaluate(
    context: typer.Context,
    model: ModelName,
    bundle: BundleFolder,
    options: CompareOptions,
    out: Annotated[Path, typer.Option(help="Output folder of the comparison.")] = Path("out/aptp"),
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Compare base, routed experts, one static expert of equal mean cost, random routing, fewer steps at equal time."""
    from hasten.plugins.aptp.commands.tables import show_traffic
    from hasten.plugins.aptp.make.evaluate import compare

    place = common.choose_place(None, device, dtype)
    hold_folder(context, out)
    show_traffic(compare(model, bundle, options, place, out))

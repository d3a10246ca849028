"""``hasten aptp bench``, ``speed`` and ``eval``: what a bundle gains, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hasten import commands as common
from hasten.commands import hold_folder
from hasten.plugins.aptp.commands.arguments import BundleFolder, ModelName, Seed

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("bench")(_bench)
    app.command("speed")(_speed)
    app.command("eval")(_evaluate)


def _bench(
    model: ModelName,
    bundle: BundleFolder,
    batch: Annotated[int, typer.Option(min=1, help="Samples in a forward.")] = 1,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved repetitions.")] = 9,
    device: common.Device = None,
    dtype: common.Dtype = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile base and experts.")] = False,
) -> None:
    """Time a forward of every expert and the base, at the size of the bundle."""
    from hasten.plugins.aptp.commands.tables import show_times
    from hasten.plugins.aptp.latency import measure

    pipe = common.load_quietly(model, common.choose_place(None, device, dtype))
    show_times(measure(pipe, bundle, batch=batch, rounds=rounds, compiled=compiled))


def _speed(
    shape: Annotated[Literal["sd21", "sdxl"], typer.Argument(help="A published U-Net, with random weights.")],
    side: Annotated[int, typer.Option(min=8, help="Side of the latents in pixels.")] = 32,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Batch size; repeatable. (default: 1 and 4)")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.05, max=1, help="Share of the multiply-accumulates to keep.")
    ] = 0.7,
    rounds: Annotated[int, typer.Option(min=3, help="Interleaved repetitions.")] = 9,
    device: common.Device = None,
    dtype: common.Dtype = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile both.")] = False,
) -> None:
    """Time a plan with a share of the operations: all groups are cut equally, and no block is removed."""
    from hasten.plugins.aptp.speed import SHAPES, even_plan_time

    place = common.choose_place(None, device, dtype)
    model = SHAPES[shape]().to(place.device, place.torch_dtype)
    for batch in batches or [1, 4]:
        row = even_plan_time(model, side, batch, share=share, rounds=rounds, compiled=compiled)
        typer.echo(
            f"{shape}, {side} x {side} latents, batch {batch}: {row.macs_share:.1%} of the operations take "
            f"{row.time.value:.1%} of the time ({row.time.low:.1%} to {row.time.high:.1%}), {row.seconds:.3f} s"
        )


def _evaluate(
    context: typer.Context,
    model: ModelName,
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option(help="Output folder of the comparison.")] = Path("out/aptp"),
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            help="File with prompts: text (one per line), JSON Lines, JSON, CSV or TSV. (default: a miniature's own)",
        ),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num-prompts", min=2, help="Number of pictures per row.")
    ] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")] = 1,
    fewer_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the equal-time control. (default: measured first)")
    ] = None,
    seed: Seed = 0,
    device: common.Device = None,
    dtype: common.Dtype = None,
) -> None:
    """Compare base, routed experts, one static expert of equal mean cost, random routing, fewer steps at equal time."""
    from hasten.plugins.aptp.commands.tables import show_traffic
    from hasten.plugins.aptp.make.evaluate import Comparison, compare

    place = common.choose_place(None, device, dtype)
    hold_folder(context, out)
    wanted = Comparison(model, prompts, num_prompts, batch_size, fewer_steps, seed, place)
    show_traffic(compare(wanted, bundle, out))

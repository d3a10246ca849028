"""The commands ``hasten calibrate`` and ``hasten kv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as options
from hasten.commands import printable

if TYPE_CHECKING:
    from hasten.commands import Table
    from hasten.plugins.hack.bench import Measurement

__all__ = ["add_commands"]


def add_commands(app: typer.Typer) -> None:
    """Add ``calibrate`` and ``kv`` to the command line ``app``."""
    app.command("calibrate")(_calibrate)
    app.command("kv")(_kv)


def _calibrate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="mini/var, a local folder or a hub id of a VAR or Infinity pipeline.")
    ],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("calibration.json"),
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="A prompt; repeat for several.")
    ] = None,
    label: Annotated[
        list[int] | None, typer.Option("--label", help="A class number; repeat for several.")
    ] = None,
    num_prompts: Annotated[
        int, typer.Option(min=1, help="Number of prompts from a miniature's data set.")
    ] = 8,
    height: options.Height = None,
    width: options.Width = None,
    seed: options.Seed = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Find contextual heads of a VAR or Infinity model, for `--set hack.calibration=FILE`."""
    from hasten.commands import hold_file, host, load_quietly
    from hasten.extend import ConfigError
    from hasten.plugins.hack.calibration import calibrate
    from hasten.plugins.hack.math import contextual_heads

    hold_file(context, out)
    seed, place = options.choose_seed(None, seed), options.choose_place(None, device, dtype)
    known = host().registry.models.get(model)
    call: dict[str, Any] = dict(known.call) if known is not None else {}
    call |= {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    texts = prompt or (known.captions.prompts(num_prompts, seed) if known is not None and not label else None)
    if texts is None and not label:
        raise ConfigError("nothing to calibrate with: give --prompt TEXT, or --label NUMBER")
    pipe = load_quietly(model, place, call)
    what = {"prompt": texts} if texts else {"class_labels": label}
    artefact = calibrate(pipe, {**call, **what}, seed)
    artefact.write(out)
    contextual = contextual_heads(artefact.statistics, "auto")
    typer.echo(
        f"{printable(str(out))}: {artefact.samples} pictures, {int(contextual.sum())} of {contextual.numel()} heads "
        "are contextual (their queries attend to the same few keys)"
    )


def _kv(
    shape: Annotated[str, typer.Argument(help="var-d16, var-d30, var-d36, infinity-2b or infinity-8b.")],
    ratio: Annotated[
        list[float] | None, typer.Option(help="Ratios to measure; repeat. (default: 0.5 0.7 0.9)")
    ] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Run only this many layers, and scale the result.")
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures in the batch.")] = 1,
    exact: Annotated[bool, typer.Option(help="Also measure the exact cache.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Interleaved runs; medians are shown.")] = 1,
    device: options.Device = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    as_json: options.Json = False,
) -> None:
    """Measure bytes and time of exact and compressed caches on a published model's attention, with random tensors."""
    import json

    from hasten.commands import Console, describe_machine
    from hasten.extend import ConfigError, suggestion
    from hasten.plugins.hack.bench import SHAPES, measure

    if shape not in SHAPES:
        raise ConfigError(f"unknown shape {shape!r}{suggestion(shape, SHAPES)} Shapes: {', '.join(SHAPES)}.")
    place = options.choose_place(None, device, dtype)
    wanted = [*([None] if exact else []), *(ratio if ratio is not None else (0.5, 0.7, 0.9))]
    rounds = [
        [
            measure(shape, r, layers=layers, pictures=pictures, device=place.device, dtype=place.torch_dtype)
            for r in wanted
        ]
        for _ in range(repeats)
    ]
    if as_json:
        rows = [m.to_dict() for found in zip(*rounds) for m in found]
        typer.echo(json.dumps({"machine": describe_machine(), "runs": rows}, indent=2))
        return
    Console().print(_table(list(zip(*rounds))))


def _table(runs: Sequence[Sequence[Measurement]]) -> Table:
    """One line for each cache; the medians of its repeated runs."""
    from statistics import median

    from hasten.commands import Table
    from hasten.plugins.hack.bench import SHAPES
    from hasten.schedules.kv_budget import kv_bytes

    first = runs[0][0]
    shape = SHAPES[first.shape]
    table = Table(
        title=f"{first.shape}, {first.pictures} pictures with guidance, {first.layers} of {shape.layers} layers"
    )
    for column in (
        "cache",
        "peak MiB",
        "formula MiB",
        "of exact",
        "of original layout",
        "seconds",
        "choosing",
    ):
        table.add_column(column, justify="left" if column == "cache" else "right")
    whole = kv_bytes(2 * first.pictures, shape.exact_tokens, shape.dim, 2)
    for found in runs:
        one = found[0]
        table.add_row(
            "exact" if one.ratio is None else f"ratio {one.ratio:g}",
            f"{one.peak_bytes / 2**20:.2f}",
            f"{one.formula_bytes / 2**20:.2f}",
            f"{one.peak_bytes / whole:.3f}",
            f"{one.peak_bytes / one.reference_bytes:.3f}",
            f"{median(m.seconds for m in found):.2f}",
            f"{median(m.compression_seconds for m in found):.2f}",
        )
    return table

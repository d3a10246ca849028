"""The command ``hasten calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["add_commands"]


def add_commands(app: Any) -> None:
    """Add ``calibrate`` to the command line ``app``."""
    app.command("calibrate")(_calibrate)


def _calibrate(
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
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts of a miniature's own data set.")] = 8,
    height: Annotated[int | None, typer.Option(min=1, help="Height in pixels.")] = None,
    width: Annotated[int | None, typer.Option(min=1, help="Width in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first picture.")] = 0,
    device: Annotated[str | None, typer.Option(help="Torch device.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
) -> None:
    """Tell contextual from structural heads of a VAR or Infinity model, for `--set hack.calibration=FILE`."""
    from hasten._cli._loading import load_quietly
    from hasten._errors import ConfigError
    from hasten.pipelines import mini
    from hasten.plugins.hack.calibration import calibrate

    pipe = load_quietly(model, device, dtype)
    call: dict[str, Any] = dict(mini.recommended_call(model)) if model.startswith("mini/") else {}
    call |= {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    texts = prompt or (mini.prompts(num_prompts, seed) if model.startswith("mini/") and not label else None)
    if texts is None and not label:
        raise ConfigError("nothing to calibrate with: give --prompt TEXT, or --label NUMBER")
    what = {"prompt": texts} if texts else {"class_labels": label}
    artefact = calibrate(pipe, {**call, **what}, seed)
    artefact.write(out)
    contextual = int((artefact.ratio < 0.5).sum())
    typer.echo(
        f"{out}: {artefact.samples} pictures, {contextual} of {artefact.ratio.numel()} heads are contextual "
        f"(less than half of their attention's energy depends on the query)"
    )

"""The command ``hasten spectrum``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as options

if TYPE_CHECKING:
    from hasten.commands import Placement

__all__ = ["add_commands", "fit_model"]


def add_commands(app: Any) -> None:
    """Add ``spectrum`` to the command line ``app``."""
    app.command("spectrum")(_spectrum)


def _spectrum(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")],
    images: Annotated[Path, typer.Argument(help="Folder of photographs; about 100 are enough.")],
    side: Annotated[
        int | None, typer.Option(min=64, help="Pixels a side. (default: the size the model was made for)")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Use at most so many images.")] = 100,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(help="Also write it here; as hasten.json beside the model it is used by itself."),
    ] = None,
) -> None:
    """Fit the power spectrum of a model's latents, which tells `bottleneck` how long it may stay at low resolution."""
    from hasten.commands import hold_file
    from hasten.files import describe_unread, list_folder

    if out is not None:
        hold_file(context, out)
    fitted = fit_model(model, images, side, limit, options.choose_place(None, device, dtype))
    if out is not None:
        _merge(out, fitted)
    typer.echo(json.dumps(fitted, indent=2))
    unread = list_folder(images).unread
    if unread:
        typer.echo(f"{images}: not read: {describe_unread(unread)}", err=True)


def fit_model(model: str, images: Path, side: int | None, limit: int, place: Placement) -> dict[str, Any]:
    """The fitted spectrum of a model's autoencoder, as it stands in ``hasten.json``.

    Args:
        model: what :func:`hasten.load` accepts.
        images: folder of images.
        side: pixels a side; ``None`` takes the model's native size.
        limit: at most so many images.
        place: where the autoencoder runs, and in which number format.

    Raises:
        ConfigError: the folder is unusable, or the native size is not known and ``side`` is ``None``.
        UnsupportedError: the model has no autoencoder, or one whose units are not known.
    """
    from hasten.commands import load
    from hasten.extend import UnsupportedError
    from hasten.plugins.bottleneck.fit import fit_folder

    pipe = load(model)
    vae = getattr(pipe, "vae", None)
    if vae is None:
        raise UnsupportedError(f"{model}: this {type(pipe).__name__} has no autoencoder to measure")
    chosen = _native_side(pipe) if side is None else side
    return fit_folder(vae.to(place.device, place.torch_dtype), images, chosen, limit).to_dict()


def _native_side(pipe: Any) -> int:
    """Short side in pixels of a call without a size."""
    from hasten.extend import ConfigError, Target, call_size

    target = Target.of(pipe)
    size = call_size(target, target.call_arguments())
    if size is None:
        raise ConfigError(f"{target.name} has no native size of its own; pass --side")
    return min(target.layout.pixels(pipe, size))


def _merge(path: Path, fitted: dict[str, Any]) -> None:
    """Write into ``path``, keeping what else the file holds."""
    from hasten.files import read_json

    remedy = "remove it or choose another file"
    kept = read_json(path, "what it holds besides", remedy) if path.exists() else {}
    path.write_text(json.dumps({**kept, **fitted}, indent=2) + "\n", encoding="utf-8")

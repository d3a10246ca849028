"""The command ``hasten spectrum``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as options
from hasten.commands import Config
from hasten.extend import ConfigError, Target, UnsupportedError, call_size

if TYPE_CHECKING:
    from hasten.commands import Placement
    from hasten.plugins.bottleneck.fit import FittedSpectrum

__all__ = ["add_commands"]

_SCENES = (
    "a photograph of a busy street market at noon",
    "a portrait photograph of an old fisherman",
    "a photograph of a mountain lake with pine trees",
    "a photograph of a kitchen table with fruit and bread",
)
"""What is generated with a model that has no captions of its own."""


def add_commands(app: Any) -> None:
    """Add ``spectrum`` to the command line ``app``."""
    app.command("spectrum")(_spectrum)


def _spectrum(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")],
    images: Annotated[
        Path | None,
        typer.Argument(help="Folder of photographs; about 100 are enough. (default: generates pictures)"),
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(min=64, help="Side of the images in pixels. (default: the native size of the model)"),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of images from the folder.")] = 100,
    prompt: options.Prompt = None,
    prompts: options.PromptsFile = None,
    num_prompts: options.NumPrompts = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the spectrum to this file, for example hasten.json in the model's folder."
        ),
    ] = None,
) -> None:
    """Measure the power spectrum of a model's latents, which sets the low-resolution steps of `bottleneck`.

    Without IMAGES, a few pictures are generated and measured. The result is kept in the user's cache folder.
    """
    from hasten.commands import hold_file
    from hasten.files import describe_unread, list_folder

    if out is not None:
        hold_file(context, out)
    place = options.choose_place(None, device, dtype)
    if images is None:
        given = {"num_inference_steps": steps, "height": side, "width": side}
        made = _prompts(model, prompt, prompts, num_prompts, seed or 0)
        pipe, fitted = _generated(
            model, made, seed or 0, options.call_arguments(model, Config(), given), place
        )
    else:
        pipe, fitted = _photographed(model, images, side, limit, place)
    content = fitted.to_dict()
    if out is not None:
        _merge(out, content)
    typer.echo(json.dumps(content, indent=2))
    if (kept := _keep(pipe, fitted)) is not None:
        typer.echo(f"kept for this autoencoder in {kept}", err=True)
    unread = list_folder(images).unread if images is not None else {}
    if unread:
        typer.echo(f"{images}: not read: {describe_unread(unread)}", err=True)


def _photographed(
    model: str, images: Path, side: int | None, limit: int, place: Placement
) -> tuple[Any, FittedSpectrum]:
    """The pipeline, only its autoencoder in place, and the spectrum of a folder of photographs.

    Raises:
        ConfigError: the folder is unusable, or the native size is not known and ``side`` is ``None``.
        UnsupportedError: the model has no autoencoder, or one whose units are not known.
    """
    from hasten.commands import load
    from hasten.plugins.bottleneck.fit import fit_folder

    pipe = load(model)
    vae = _autoencoder(pipe, model).to(place.device, place.torch_dtype)
    return pipe, fit_folder(vae, images, _native_side(pipe) if side is None else side, limit)


def _generated(
    model: str, prompts: tuple[str, ...], seed: int, call: dict[str, Any], place: Placement
) -> tuple[Any, FittedSpectrum]:
    """The pipeline, and the spectrum of pictures that it makes for ``prompts``.

    Raises:
        UnsupportedError: see :func:`_photographed`; or the pictures have no spectrum of natural ones.
    """
    from hasten.commands import Job, generate, load_quietly
    from hasten.plugins.bottleneck.fit import fit_pictures

    pipe = load_quietly(model, place, call)
    vae = _autoencoder(pipe, model)
    pictures = [frame for sample in generate(pipe, Job(prompts, seed, call)) for frame in sample.frames]
    try:
        return pipe, fit_pictures(vae, pictures, min(pictures[0].size))
    except ValueError as error:
        raise UnsupportedError(f"{model}: {error}; give a folder of photographs") from error


def _autoencoder(pipe: Any, model: str) -> Any:
    if getattr(pipe, "vae", None) is None:
        raise UnsupportedError(f"{model}: this {type(pipe).__name__} has no autoencoder to measure")
    return pipe.vae


def _prompts(
    model: str, prompt: list[str] | None, file: Path | None, limit: int | None, seed: int
) -> tuple[str, ...]:
    """What to generate: as told, else a miniature's own captions, else everyday scenes."""
    from hasten.commands import host

    if prompt is None and file is None and model not in host().registry.models:
        return _SCENES[: limit or len(_SCENES)]
    return options.choose_prompts(model, Config(), prompt, file, limit, seed)


def _keep(pipe: Any, fitted: FittedSpectrum) -> Path | None:
    """Where the spectrum is kept for the pipeline's autoencoder."""
    from hasten.plugins.bottleneck.learned import LearnedSpectrum, autoencoder_of, keep

    autoencoder = autoencoder_of(pipe)
    learned = LearnedSpectrum(fitted.spectrum, fitted.images, fitted.latents)
    return None if autoencoder is None else keep(autoencoder, learned)


def _native_side(pipe: Any) -> int:
    """Short side in pixels of a call without a size."""
    target = Target.of(pipe)
    size = call_size(target, target.call_arguments())
    if size is None:
        raise ConfigError(f"{target.name} has no native size; pass --side")
    return min(target.layout.pixels(pipe, size))


def _merge(path: Path, fitted: dict[str, Any]) -> None:
    """Write into ``path``, keeping what else the file holds."""
    from hasten.files import read_json

    remedy = "remove it or choose another file"
    kept = read_json(path, "its other contents", remedy) if path.exists() else {}
    path.write_text(json.dumps({**kept, **fitted}, indent=2) + "\n", encoding="utf-8")

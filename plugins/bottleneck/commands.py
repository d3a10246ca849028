"""The command ``hasten spectrum``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten import commands as options
from hasten.commands import Config
from hasten.extend import ConfigError, Target, UnsupportedError, call_size

if TYPE_CHECKING:
    from hasten.commands import Job, Placement
    from hasten.plugins.bottleneck.fit import FittedSpectrum

__all__ = ["add_commands"]

_SCENES = (
    "a photograph of a busy street market at noon",
    "a portrait photograph of an old fisherman",
    "a photograph of a mountain lake with pine trees",
    "a photograph of a kitchen table with fruit and bread",
)
"""Prompts for a model without bundled captions."""


def add_commands(app: typer.Typer) -> None:
    """Add ``spectrum`` to the command line ``app``."""
    app.command("spectrum")(options.with_option_groups(_spectrum))


@dataclass(frozen=True)
class _Measured:
    """What is measured, and where the result is written."""

    side: Annotated[
        int | None,
        typer.Option(min=64, help="Side of the images in pixels. (default: the native size of the model)"),
    ] = None
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of images from the folder.")] = 100
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write the spectrum to this file, for example hasten.json in the model's folder."
        ),
    ] = None


@dataclass(frozen=True)
class _Generated:
    """Pictures that are generated, without a folder."""

    prompt: options.Prompt = None
    prompts: options.PromptsFile = None
    num_prompts: options.NumPrompts = None
    seed: options.Seed = None
    steps: options.Steps = None

    def texts(self, model: str) -> tuple[str, ...]:
        """The prompts of the command line; otherwise captions of a miniature, or everyday scenes."""
        from hasten.commands import host

        if self.prompt is None and self.prompts is None and model not in host().registry.models:
            return _SCENES[: self.num_prompts or len(_SCENES)]
        limit, seed = self.num_prompts, self.seed or 0
        return options.choose_prompts(model, Config(), self.prompt, self.prompts, limit, seed)


def _spectrum(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A local diffusers folder, a hub id, or a bundled miniature.")],
    measured: _Measured,
    generated: _Generated,
    images: Annotated[
        Path | None,
        typer.Argument(help="Folder of photographs; about 100 are enough. (default: generates pictures)"),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
) -> None:
    """Measure the power spectrum of a model's latents, which sets the low-resolution steps of `bottleneck`.

    Without IMAGES, a few pictures are generated and measured. The result is kept in the user's cache folder.
    """
    from hasten.commands import Job, hold_file
    from hasten.files import describe_unread, list_folder

    if measured.out is not None:
        hold_file(context, measured.out)
    place = options.choose_place(None, device, dtype)
    if images is None:
        side = measured.side
        call = options.call_arguments(model, Config(), steps=generated.steps, height=side, width=side)
        job = Job(generated.texts(model), generated.seed or 0, call)
        pipe, fitted = _of_generated(model, job, place)
    else:
        pipe, fitted = _of_photographs(model, images, measured, place)
    content = fitted.to_dict()
    if measured.out is not None:
        _merge(measured.out, content)
    typer.echo(json.dumps(content, indent=2))
    if (kept := _keep(pipe, fitted)) is not None:
        typer.echo(f"kept for this autoencoder in {kept}", err=True)
    unread = list_folder(images).unread if images is not None else {}
    if unread:
        typer.echo(f"{images}: not read: {describe_unread(unread)}", err=True)


def _of_photographs(
    model: str, images: Path, measured: _Measured, place: Placement
) -> tuple[Any, FittedSpectrum]:
    """The pipeline, with only its autoencoder on the device, and the spectrum of a folder of photographs.

    Raises:
        ConfigError: the folder cannot be used, or no side is given and the native size is unknown.
        UnsupportedError: the model has no autoencoder, or the scale of its latents is unknown.
    """
    from hasten.commands import load
    from hasten.plugins.bottleneck.fit import fit_folder

    pipe = load(model)
    vae = _autoencoder(pipe, model).to(place.device, place.torch_dtype)
    side = _native_side(pipe) if measured.side is None else measured.side
    return pipe, fit_folder(vae, images, side, measured.limit)


def _of_generated(model: str, job: Job, place: Placement) -> tuple[Any, FittedSpectrum]:
    """The pipeline, and the spectrum of pictures that it generates.

    Raises:
        UnsupportedError: see :func:`_of_photographs`; or the power of the pictures does not fall with frequency.
    """
    from hasten.commands import generate, load_quietly
    from hasten.plugins.bottleneck.fit import fit_pictures

    pipe = load_quietly(model, place, job.call)
    vae = _autoencoder(pipe, model)
    pictures = [frame for sample in generate(pipe, job) for frame in sample.frames]
    try:
        return pipe, fit_pictures(vae, pictures, min(pictures[0].size))
    except ValueError as error:
        raise UnsupportedError(f"{model}: {error}; give a folder of photographs") from error


def _autoencoder(pipe: Any, model: str) -> Any:
    if getattr(pipe, "vae", None) is None:
        raise UnsupportedError(f"{model}: this {type(pipe).__name__} has no autoencoder to measure")
    return pipe.vae


def _keep(pipe: Any, fitted: FittedSpectrum) -> Path | None:
    """Store the spectrum for the pipeline's autoencoder. Returns its file, ``None`` if it was not stored."""
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
    """Write into ``path``, and keep the other contents of the file."""
    from hasten.files import read_json

    remedy = "remove it or choose another file"
    kept = read_json(path, "its other contents", remedy) if path.exists() else {}
    path.write_text(json.dumps({**kept, **fitted}, indent=2) + "\n", encoding="utf-8")

"""Measures the power spectrum of an autoencoder's latents on images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hasten.extend import ConfigError, UnsupportedError
from hasten.files import describe_unread, list_folder, read_rgb
from hasten.schedules.spectrum import Spectrum, fit_spectrum

__all__ = ["FittedSpectrum", "encode", "fit_folder", "fit_pictures"]


@dataclass(frozen=True)
class FittedSpectrum:
    """A measured spectrum.

    Args:
        spectrum: the power law.
        images: number of images it was measured on.
        side: of the images, in pixels.
        latents: height and width of their latents.
    """

    spectrum: Spectrum
    images: int
    side: int
    latents: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """The content of a model's ``hasten.json``."""
        law = {"A": self.spectrum.amplitude, "beta": self.spectrum.exponent}
        return {"spectrum": {**law, "images": self.images, "side": self.side}}


def fit_folder(vae: Any, folder: Path, side: int, limit: int = 100) -> FittedSpectrum:
    """Encode the images of a folder and fit a power law to their latents.

    Args:
        vae: a diffusers autoencoder, on any device. It should compute in float32.
        folder: folder of still images that Pillow can read. Subfolders are searched and links are followed.
        side: side in pixels. Images are cropped to their central square and shrunk to this side. Use the size that the
            model generates: the power at a frequency in cycles per image grows with the number of pixels.
        limit: largest number of images, which are taken in the order of their names.

    Raises:
        ConfigError: the folder has no image of at least ``side`` pixels, or a file is not an image.
        UnsupportedError: the scale of the autoencoder's latents is unknown.
    """
    try:
        return fit_pictures(vae, _pictures(folder, side, limit), side)
    except ValueError as error:
        raise ConfigError(f"{folder}: {error}") from error
    except LookupError:
        left = describe_unread(list_folder(folder).unread)
        raise ConfigError(
            f"{folder} has no image of at least {side} x {side} pixels. Enlarged smaller images would "
            f"falsify the spectrum: use larger images or a smaller side"
            + (f". Not read: {left}" if left else "")
        ) from None


def fit_pictures(vae: Any, pictures: Iterable[Image.Image], side: int) -> FittedSpectrum:
    """Encode pictures and fit a power law to their latents; see :func:`fit_folder`.

    Args:
        vae: a diffusers autoencoder.
        pictures: with sides of at least ``side`` pixels.
        side: side in pixels that they are cropped and shrunk to.

    Raises:
        LookupError: there are no pictures.
        ValueError: the power of their latents does not fall with frequency, as it does for natural pictures.
        UnsupportedError: the scale of the autoencoder's latents is unknown.
    """
    latents = [encode(vae, _square(picture, side)) for picture in pictures]
    if not latents:
        raise LookupError("no picture")
    size = (latents[0].shape[-2], latents[0].shape[-1])
    return FittedSpectrum(fit_spectrum(torch.cat(latents)), len(latents), side, size)


def _square(image: Image.Image, side: int) -> Tensor:
    """The central square as (1, 3, side, side) in [-1, 1]."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    return torch.from_numpy(pixels / 127.5 - 1.0).permute(2, 0, 1)[None]


def _pictures(folder: Path, side: int, limit: int) -> Iterator[Image.Image]:
    """The first ``limit`` images that are large enough."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    images = (_picture(folder, name) for name in list_folder(folder).pictures)
    yield from islice((image for image in images if min(image.size) >= side), limit)


def _picture(folder: Path, name: str) -> Image.Image:
    try:
        return read_rgb(folder / name, name)
    except ConfigError as error:
        raise ConfigError(f"{folder / name} cannot be read as an image: {error} Or remove it") from error


@torch.no_grad()
def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of an image in the units of the denoiser.

    Args:
        vae: a diffusers autoencoder of images or videos.
        pixels: (1, 3, H, W) in [-1, 1].

    Returns:
        (1, C, h, w), float32.

    Raises:
        UnsupportedError: the scale of the autoencoder's latents is unknown.
    """
    weight = next(vae.parameters())
    video = any(isinstance(module, nn.Conv3d) for module in vae.modules())
    given = pixels.to(weight.device, weight.dtype)
    encoded = vae.encode(given[:, :, None] if video else given)
    distribution = getattr(encoded, "latent_dist", None)
    latent: Tensor = encoded.latent if distribution is None else distribution.mode()
    scaled = _scaled(vae, latent.float())
    return scaled[:, :, 0] if video else scaled


def _scaled(vae: Any, latent: Tensor) -> Tensor:
    """Raw latents in the denoiser's units, by the constants in the autoencoder's configuration."""
    config = vae.config
    mean, deviation = (_per_channel(vae, name, latent) for name in ("latents_mean", "latents_std"))
    scale, shift = config.get("scaling_factor"), config.get("shift_factor") or 0.0
    if mean is not None and deviation is not None:
        return (latent - mean) / deviation * (1.0 if scale is None else scale)
    if scale is None:
        raise UnsupportedError(
            f"{type(vae).__name__} has neither scaling_factor nor latents_mean and latents_std, so the "
            f"scale of its latents is not known; measure A and beta yourself and pass them as spectrum"
        )
    return (latent - shift) * float(scale)


def _per_channel(vae: Any, name: str, latent: Tensor) -> Tensor | None:
    values = getattr(vae, name, None)
    values = vae.config.get(name) if values is None else values
    if values is None:
        return None
    return torch.as_tensor(values, dtype=latent.dtype, device=latent.device).view(
        1, -1, *[1] * (latent.ndim - 2)
    )

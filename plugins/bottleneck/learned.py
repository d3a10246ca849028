"""Spectra measured on the user's pictures, stored in the user's cache folder by fingerprint of the autoencoder."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from hasten.commands import Processes
from hasten.extend import CheckpointError, HastenError
from hasten.files import as_fields, cache_folder, read_sealed, seal, write_atomically
from hasten.schedules.spectrum import Spectrum, fit_spectrum
from hasten.weights import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

    from hasten.extend import Pipeline

__all__ = ["LearnedSpectrum", "autoencoder_of", "entry_of", "keep", "may_differ", "measure", "recall"]

_SCHEMA = 1
_WHAT, _REMEDY = "the spectrum", "it is measured again"
_PROBED = 4
"""Number of parameters in the fingerprint, to tell autoencoders of the same configuration apart."""

_log = logging.getLogger("hasten")
_unwritten: dict[str, LearnedSpectrum] = {}
"""Spectra that could not be written; they last as long as this process."""


class _Fields(BaseModel):
    """The JSON of an entry."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    schema_version: int = Field(alias="schema", ge=_SCHEMA, le=_SCHEMA)
    A: float = Field(gt=0)
    beta: float = Field(ge=0)
    pictures: PositiveInt
    height: Annotated[int, Field(ge=8)]
    width: Annotated[int, Field(ge=8)]


@dataclass(frozen=True)
class LearnedSpectrum:
    """A spectrum measured on pictures of one size.

    Args:
        spectrum: the power law at this size.
        pictures: number of pictures; each frame of a video counts.
        size: height and width of their latents.
    """

    spectrum: Spectrum
    pictures: int
    size: tuple[int, int]

    def at(self, size: tuple[int, int]) -> Spectrum:
        """The spectrum at another latent size (height, width): power at a frequency grows with the number of pixels."""
        grown = size[0] * size[1] / (self.size[0] * self.size[1])
        return Spectrum(self.spectrum.amplitude * grown, self.spectrum.exponent)


def measure(latents: Tensor) -> LearnedSpectrum:
    """The spectrum of clean latents (B, C, [F,] H, W) in the denoiser's units.

    Raises:
        ValueError: they are too small, constant or not finite, or their power does not fall with frequency.
    """
    pictures = latents if latents.ndim == 4 else latents.transpose(1, 2).flatten(0, 1)
    return LearnedSpectrum(fit_spectrum(pictures), len(pictures), (latents.shape[-2], latents.shape[-1]))


def may_differ() -> bool:
    """Whether there are several processes, which could read different entries and so use different sizes."""
    import torch.distributed as dist

    joined = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return joined or Processes.from_environment().world > 1


def autoencoder_of(pipe: Pipeline) -> str | None:
    """Fingerprint of a pipeline's autoencoder; ``None`` if the pipeline has none."""
    vae = getattr(pipe, "vae", None)
    if vae is None or not hasattr(vae, "parameters"):
        return None
    weights = list(vae.parameters())
    probed = weights[:: max(1, len(weights) // _PROBED)]
    return fingerprint({**vae.config, "class": type(vae).__name__}, [x for x in probed if not x.is_meta])


def entry_of(autoencoder: str) -> Path | None:
    """Path of the file of an autoencoder's spectrum; ``None`` if the user has switched the cache folder off."""
    folder = cache_folder()
    return None if folder is None else folder / "spectra" / f"{autoencoder}.json"


def recall(autoencoder: str) -> LearnedSpectrum | None:
    """The stored spectrum; ``None`` if there is none, or if its file is damaged (a warning is logged)."""
    path = entry_of(autoencoder)
    if path is None:
        return _unwritten.get(autoencoder)
    try:
        content = read_sealed(path, _REMEDY, old=False)
        found = None if content is None else as_fields(content, _Fields, path, _WHAT, _REMEDY)
    except CheckpointError as error:
        _log.warning("bottleneck: %s", error)
        found = None
    if found is None:
        return _unwritten.get(autoencoder)
    return LearnedSpectrum(Spectrum(found.A, found.beta), found.pictures, (found.height, found.width))


def keep(autoencoder: str, learned: LearnedSpectrum) -> Path | None:
    """Store a spectrum, completely or not at all.

    Returns:
        Its file; ``None`` if the cache folder is switched off or cannot be written. Then the spectrum lasts as long as
        this process.
    """
    path = entry_of(autoencoder)
    if path is None:
        _unwritten[autoencoder] = learned
        return None
    height, width = learned.size
    content = {
        "schema": _SCHEMA,
        "A": learned.spectrum.amplitude,
        "beta": learned.spectrum.exponent,
        "pictures": learned.pictures,
        "height": height,
        "width": width,
    }
    try:
        os.makedirs(path.parent, exist_ok=True)
        write_atomically(path, seal(content))
    except (OSError, HastenError) as error:
        _log.warning("bottleneck: the measured spectrum is kept for this process only: %s", error)
        _unwritten[autoencoder] = learned
        return None
    return path

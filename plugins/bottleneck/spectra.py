"""Known power spectra of the latents of pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from hasten.extend import saved_in
from hasten.files import read_fields
from hasten.schedules.spectrum import Spectrum

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["SIDECAR", "UNKNOWN", "KnownSpectrum", "known_spectrum", "read_sidecar"]

SIDECAR = "hasten.json"
"""File beside a pipeline's ``model_index.json`` that may hold ``{"spectrum": {"A": ..., "beta": ...}}``."""

UNKNOWN = Spectrum(1.0, 0.0)
"""Upper bound for latents of unit variance: their power falls with frequency and its mean is 1, so at the edge of the
band it is at most that of white noise. With this bound a run returns to full resolution early."""

_FLUX = Spectrum(203.615097, 1.915461)
_WAN = Spectrum(219.484718, 2.422687)


_REMEDY = (
    'write {"spectrum": {"A": 200.0, "beta": 1.9}}, or fit one with: hasten spectrum MODEL IMAGES --out FILE'
)


class _Entry(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    A: float = Field(gt=0)
    beta: float = Field(ge=0)


class _Sidecar(BaseModel):
    spectrum: _Entry | None = None


@dataclass(frozen=True)
class KnownSpectrum:
    """A spectrum and a description of its source."""

    spectrum: Spectrum
    source: str


def known_spectrum(pipe: Pipeline) -> KnownSpectrum | None:
    """The spectrum of a pipeline's latents, from its ``hasten.json`` or a published fit; ``None`` if it is unknown.

    Raises:
        CheckpointError: the pipeline's ``hasten.json`` is damaged.
    """
    folder = saved_in(pipe)
    if folder is not None and (path := folder / SIDECAR).exists():
        own = read_sidecar(path)
        if own is not None:
            return KnownSpectrum(own, f"{SIDECAR} of the model")
    return _published(getattr(pipe, "vae", None))


def read_sidecar(path: Path) -> Spectrum | None:
    """The spectrum in a ``hasten.json``; ``None`` if the file has none.

    Raises:
        CheckpointError: the file is not a JSON object, or the spectrum is malformed.
    """
    entry = read_fields(path, _Sidecar, "the spectrum", _REMEDY).spectrum
    return None if entry is None else Spectrum(entry.A, entry.beta)


def _published(vae: Any) -> KnownSpectrum | None:
    """Fits published with SPEED, arXiv 2605.18736, recognised by how the autoencoder scales its latents."""
    config: Mapping[str, Any] = getattr(vae, "config", {})
    name = type(vae).__name__
    if name == "AutoencoderKL" and config.get("latent_channels") == 16:
        scaling = (config.get("scaling_factor"), config.get("shift_factor"))
        if scaling == (0.3611, 0.1159):
            return KnownSpectrum(_FLUX, "published fit of the FLUX autoencoder")
    if name == "AutoencoderKLWan" and config.get("z_dim") == 16:
        return KnownSpectrum(_WAN, "published fit of the Wan 2.1 autoencoder")
    return None

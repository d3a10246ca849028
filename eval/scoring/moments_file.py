"""Statistics files of reference sets: mean and covariance of features, with a record of what made them."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.eval.fingerprint import Fingerprint, require_same
from hasten.eval.functional.moments import Moments
from hasten.eval.pictures.arrays import what_is_wrong
from hasten.extend import CheckpointError, ConfigError
from hasten.files import write_atomically

__all__ = ["Statistics", "load_statistics", "save_statistics"]

#: How far, of its largest entry, a covariance may be from symmetric: what single precision leaves.
_ASYMMETRY = 1e-4


@dataclass(frozen=True)
class Statistics:
    """Moments of a reference set and what made them; ``fingerprint`` is ``None`` for files of other tools."""

    moments: Moments
    fingerprint: Fingerprint | None
    source: str = ""


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write statistics as npz: ``mu`` and ``sigma`` as every tool reads them, beside ``n`` and ``made_by``
    (JSON).
    """
    made_by: dict[str, Any] = {"source": statistics.source, "fingerprint": None}
    if statistics.fingerprint is not None:
        made_by["fingerprint"] = statistics.fingerprint.as_dict()
    content = io.BytesIO()
    np.savez(
        content,
        mu=statistics.moments.mean.cpu().numpy(),
        sigma=statistics.moments.covariance.cpu().numpy(),
        n=np.int64(statistics.moments.n),
        made_by=np.array(json.dumps(made_by, sort_keys=True)),
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), content.getvalue())


def load_statistics(
    path: str | Path, *, expected: Fingerprint | None = None, n: int | None = None, trust: bool = False
) -> Statistics:
    """Read statistics of this or another tool (pytorch-fid, clean-fid, evaluation batches).

    Args:
        path: npz with ``mu`` [d] and ``sigma`` [d, d].
        expected: refuse the file unless it records this fingerprint.
        n: sample size, for files of other tools, which don't record it.
        trust: take a file that records no fingerprint for one of ``expected``; one with another is refused anyway.

    Raises:
        ConfigError: if a part is missing, the file was made differently, or records another ``n``.
        CheckpointError: if it is damaged or holds no statistics: other shapes, NaN, complex numbers.
    """
    parts = _read(Path(path))
    mean, sigma = _numbers(path, "mu", parts, 1), _numbers(path, "sigma", parts, 2)
    if mean.ndim != 1 or sigma.shape != (len(mean), len(mean)):
        raise CheckpointError(f"mu and sigma of {path} don't fit: {list(mean.shape)} and {list(sigma.shape)}")
    _check_covariance(path, sigma)
    count = _count(path, parts, n)
    fingerprint, source = _made_by(path, parts)
    if expected is not None and fingerprint is not None:
        require_same(expected, fingerprint)
    if expected is not None and fingerprint is None and not trust:
        raise ConfigError(
            f"{path} does not record how it was computed, so it can't be checked against a metric; if the "
            "same network computed it, give --reference-count (in Python: n and trust=True)"
        )
    return Statistics(Moments(count, mean, sigma * (count - 1)), fingerprint, source)


def _read(path: Path) -> dict[str, np.ndarray]:
    """The members that matter; an evaluation batch holds all its pictures as well."""
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("mu", "sigma") if name not in file.files]
            if missing:
                raise CheckpointError(f"{path} holds no mu and sigma: {', '.join(missing)} is missing")
            return {name: file[name] for name in ("mu", "sigma", "n", "made_by") if name in file.files}
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise ConfigError(f"there is no statistics file {path}") from error
    except (
        Exception
    ) as error:  # as the damage is: BadZipFile, zlib.error, EOFError, ValueError, TypeError, ...
        raise CheckpointError(f"{path} holds no mu and sigma: {what_is_wrong(path, error)}") from error


def _numbers(path: str | Path, name: str, parts: dict[str, np.ndarray], dimensions: int) -> Tensor:
    array = parts[name]
    if array.dtype.kind not in "fiu":
        raise CheckpointError(f"{name} of {path} must hold real numbers, not {array.dtype}")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise CheckpointError(f"{name} of {path} holds NaN or infinity ({bad} of {array.size} numbers)")
    shaped = np.atleast_1d(array) if dimensions == 1 else np.atleast_2d(array)
    return torch.from_numpy(shaped.astype(np.float64))


def _check_covariance(path: str | Path, sigma: Tensor) -> None:
    if not sigma.numel():
        raise CheckpointError(f"mu and sigma of {path} are empty")
    if float(sigma.diagonal().min()) < 0:
        raise CheckpointError(f"sigma of {path} is not a covariance: it has negative variances")
    if float((sigma - sigma.T).abs().max()) > _ASYMMETRY * float(sigma.abs().max()):
        raise CheckpointError(f"sigma of {path} is not a covariance: it is not symmetric")


def _count(path: str | Path, parts: dict[str, np.ndarray], given: int | None) -> int:
    recorded = parts.get("n")
    if recorded is not None:
        if recorded.size != 1 or recorded.dtype.kind not in "iu" or int(recorded.item()) < 2:
            raise CheckpointError(f"n of {path} must be one whole number of 2 or more, not {recorded!s:.40}")
        if given is not None and given != int(recorded.item()):
            raise ConfigError(f"{path} records {int(recorded.item())} pictures, not {given}")
        return int(recorded.item())
    if given is None:
        raise ConfigError(
            f"{path} does not record its sample size; give its number of pictures with "
            "--reference-count (in Python: n)"
        )
    if given < 2:
        raise ConfigError(f"statistics are made from at least two pictures, not {given}")
    return given


def _made_by(path: str | Path, parts: dict[str, np.ndarray]) -> tuple[Fingerprint | None, str]:
    if "made_by" not in parts:
        return None, ""
    try:
        made_by = json.loads(str(parts["made_by"]))
        recorded = made_by["fingerprint"]
        return None if recorded is None else Fingerprint.from_dict(recorded), str(made_by["source"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(f"made_by of {path} is not a valid record of its origin: {error}") from error

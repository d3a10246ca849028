"""Golden numbers: closed-form results that this installation must reproduce, without any download."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

__all__ = ["OPTIONAL", "Check", "Outcome", "examine"]

#: Importable name -> (what it is for, how to get it).
OPTIONAL = {
    "matplotlib": ("the HTML report", "pip install 'hasten[report]'"),
    "jinja2": ("the HTML report", "pip install 'hasten[report]'"),
    "torch_fidelity": ("its Inception network for FID", "pip install 'hasten[fid]'"),
    "av": ("reading and writing videos", "pip install 'hasten[video]'"),
}


@dataclass(frozen=True)
class Check:
    """A figure with a known value; ``tolerance`` is relative, absolute where the value is 0."""

    name: str
    compute: Callable[[], float]
    expected: float
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Outcome:
    """What a check gave here."""

    name: str
    expected: float
    found: float
    held: bool
    error: str = ""


def examine() -> list[Outcome]:
    """Run every check; one that raises has not held."""
    return [_run(check) for check in _checks()]


def missing() -> dict[str, tuple[str, str]]:
    """Optional packages that are not installed, as in :data:`OPTIONAL`."""
    return {name: about for name, about in OPTIONAL.items() if find_spec(name) is None}


def _run(check: Check) -> Outcome:
    try:
        found = float(check.compute())
    except Exception as error:  # a broken library may raise anything; the doctor's job is to say so
        return Outcome(check.name, check.expected, math.nan, False, f"{type(error).__name__}: {error}")
    held = math.isclose(
        found, check.expected, rel_tol=check.tolerance, abs_tol=0 if check.expected else check.tolerance
    )
    return Outcome(check.name, check.expected, found, held)


def _checks() -> list[Check]:
    return [*_frechet_checks(), *_mmd_checks(), *_pixel_checks(), *_statistics_checks()]


def _gaussian(mean: list[float], covariance: list[list[float]]) -> object:
    from hasten.eval.functional.moments import Moments

    n = 1000
    scatter = torch.tensor(covariance, dtype=torch.float64) * (n - 1)
    return Moments(n, torch.tensor(mean, dtype=torch.float64), scatter)


def _diagonal(*values: float) -> list[list[float]]:
    return torch.diag(torch.tensor(values)).tolist()


def _frechet_checks() -> list[Check]:
    from hasten.eval.functional.frechet import frechet_distance

    def distance(first: object, second: object) -> Callable[[], float]:
        return lambda: frechet_distance(first, second).value  # type: ignore[arg-type]

    shifted = distance(_gaussian([0, 0, 0], _diagonal(1, 4, 9)), _gaussian([1, 2, 2], _diagonal(4, 4, 1)))
    rotated = distance(_gaussian([0, 0], [[2, 1], [1, 2]]), _gaussian([0, 0], _diagonal(1, 3)))
    return [
        Check("Frechet distance, diagonal covariances", shifted, 14.0),
        Check("Frechet distance, covariances that don't commute", rotated, 0.516685226452117),
    ]


def _mmd_checks() -> list[Check]:
    from hasten.eval.functional.mmd import cmmd, discrepancy, kernel_sums, polynomial_kernel

    axes = torch.eye(2)

    def kid() -> float:
        x, y = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.zeros(2, 2)
        sums = [kernel_sums(a, b, polynomial_kernel) for a, b in ((x, None), (y, None), (x, y))]
        return discrepancy(*sums, unbiased=True)

    def unbiased() -> float:
        value = cmmd(axes, -axes).unbiased
        return math.nan if value is None else value

    return [
        Check("CMMD, orthogonal", lambda: cmmd(axes[:1], axes[1:]).biased, 19.900332501663787),
        Check("CMMD, two against two", lambda: cmmd(axes, -axes).biased, 19.801326693244747),
        Check("CMMD, unbiased", unbiased, 1000 * (math.exp(-0.01) - math.exp(-0.02))),
        Check("KID", kid, 26.0),
    ]


def _grey(value: int) -> Tensor:
    return torch.full((1, 3, 16, 16), value, dtype=torch.uint8)


def _pixel_checks() -> list[Check]:
    from hasten.eval.functional.pixel import psnr
    from hasten.eval.functional.ssim import ssim

    def extremes() -> float:
        return float(ssim(_grey(0), _grey(255)))

    return [
        Check("PSNR, one grey level", lambda: float(psnr(_grey(10), _grey(11))), 48.1308036086791),
        Check(
            "PSNR, sixteen levels down", lambda: float(psnr(_grey(26), _grey(10))), 20 * math.log10(255 / 16)
        ),
        Check("PSNR, black and white", lambda: float(psnr(_grey(0), _grey(255))), 0.0),
        Check("SSIM, black and white", extremes, 9.999000099990002e-05, 1e-6),
        Check("SSIM, identical", lambda: float(ssim(_grey(7), _grey(7))), 1.0),
    ]


def _statistics_checks() -> list[Check]:
    from hasten.eval.functional.alignment import match_probability, scale_cosines
    from hasten.eval.statistics import holm, minimal_detectable_effect, wilson

    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)
    cosine = torch.tensor([0.6], dtype=torch.float64)
    return [
        Check("CLIP score, original scale", lambda: float(scale_cosines(cosine, "original")), 1.5),
        Check("ITM probability", lambda: float(match_probability(logits)), 0.75),
        Check("Holm's adjustment", lambda: holm([0.01, 0.04, 0.03])[2], 0.06),
        Check("smallest detectable difference", lambda: minimal_detectable_effect(1.0), 2.801585218112969),
        Check("Wilson interval, none of ten", lambda: wilson(0, 10)[1], 0.2775327998628892),
    ]

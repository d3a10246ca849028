"""The base that experts are cut from: its requirements, and how changes of it are detected."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.extend import ModuleState, PrunableUnits, Structure, UnsupportedError, unwrapped
from hasten.plugins.aptp.bundle import Bundle, probe_weights
from hasten.plugins.aptp.surgery import refuse_hooks, without_adapters

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["Base", "plain_base", "prepare"]

_ROUNDING = 2.0**-8
"""Relative error of a weight cast to bfloat16."""


def plain_base(denoiser: nn.Module) -> nn.Module:
    """The denoiser without the wrappers of fused adapters, over the same tensors.

    Raises:
        UnsupportedError: it is offloaded, quantised, stored in another type than it computes in, or has an adapter
            that is not fused.
    """
    root = unwrapped(denoiser)
    refuse_hooks(root)
    plain = without_adapters(root)
    for name, parameter in plain.named_parameters():
        kind = type(parameter).__name__
        if type(parameter) is not nn.Parameter:
            raise UnsupportedError(
                f"{name!r} is a {kind}: the denoiser is quantised or sharded and can't be cut; load it in a plain "
                f"floating-point type"
            )
        if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
            raise UnsupportedError(
                f"{name!r} is stored as {parameter.dtype}: the denoiser is quantised and can't be cut; load it in "
                f"float32, float16 or bfloat16"
            )
    return plain


def prepare(
    target: Target, bundle: Bundle, denoiser: nn.Module, *, weights: bool
) -> tuple[nn.Module, Structure]:
    """The model that a bundle's experts are cut from, and its units.

    Args:
        target: the pipeline.
        bundle: the bundle it has to fit.
        denoiser: the user's denoiser.
        weights: also compare some weights with those the bundle was made for.

    Raises:
        UnsupportedError: the experts cannot be cut from it; the message says why.
    """
    plain = plain_base(denoiser)
    family = target.adapter.family
    bundle.check_base(plain, family, weights=False)
    units = target.capability(PrunableUnits)
    structure = units.structure(plain, bundle.manifest.grain.grain())
    for expert in bundle.experts:
        expert.plan.check(structure)
    if weights:
        bundle.check_base(plain, family)
    return plain, structure


class Base:
    """The base of one acceleration, as the user's pipeline has it now.

    Args:
        bundle: its experts are cut from the base.
        prepare: :func:`prepare` for this pipeline and bundle.
    """

    def __init__(self, bundle: Bundle, prepare: Callable[[nn.Module], tuple[nn.Module, Structure]]) -> None:
        self._bundle, self._prepare = bundle, prepare
        self._own = bundle.own_parameters()
        self._state: ModuleState | None = None
        self._probe = torch.empty(0)
        self.plain: nn.Module
        """The model that experts are cut from; set by :meth:`follow`."""
        self.structure: Structure
        """Its units; set by :meth:`follow`."""

    def follow(self, denoiser: nn.Module) -> bool:
        """Compare the denoiser with its last state.

        Returns:
            Whether it was moved, cast, edited or replaced, so that experts have to be cut again.

        Raises:
            UnsupportedError: experts cannot be cut from the changed denoiser.
        """
        root = unwrapped(denoiser)
        place = None if self._state is None else self._state.change(root)
        if self._state is not None and place is None:
            return False
        try:
            plain, structure = self._prepare(root)
            self._refuse_unreachable(plain)
        except UnsupportedError as error:
            if place is None:
                raise
            raise UnsupportedError(
                f"aptp: the denoiser was changed after attaching, first at {place!r}, and its experts cannot be "
                f"changed in the same way: {error}"
            ) from error
        self.plain, self.structure, self._state = plain, structure, ModuleState(root)
        return True

    def _refuse_unreachable(self, plain: nn.Module) -> None:
        """Refuse a change of parameters that experts replace with their own: it would not reach the experts."""
        probe = _probe(plain, self._own)
        if self._state is None:
            self._probe = probe
        elif probe.shape != self._probe.shape or not torch.allclose(
            probe, self._probe, rtol=_ROUNDING, atol=1e-6
        ):
            raise UnsupportedError(
                f"the experts of {self._bundle.place} have their own weights, and a change of the base's weights does "
                f"not reach them; undo it, or call restore() and continue without aptp"
            )


def _probe(model: nn.Module, names: frozenset[str] | None) -> Tensor:
    """A few values of the named parameters; of all parameters for ``None``."""
    if names is None:
        return probe_weights(model.parameters())
    return probe_weights(value for name, value in model.named_parameters() if name in names)

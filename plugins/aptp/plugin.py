"""The technique ``aptp``: claims, checks, attaching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.extend import (
    Access,
    Claim,
    Finding,
    Forecast,
    HastenError,
    PrunableUnits,
    ScaleSchedule,
    Structure,
    Technique,
    UnsupportedError,
    hookimpl,
    step_caches,
)
from hasten.plugins.aptp.config import AptpConfig

if TYPE_CHECKING:
    import typer
    from torch import nn

    from hasten.extend import Seams, Target
    from hasten.plugins.aptp.bundle import Bundle

__all__ = ["BUNDLES", "Aptp"]

BUNDLES = Path(__file__).with_name("bundles")
"""Bundles of the miniatures, one folder each."""


class Aptp(Technique[AptpConfig]):
    """Prompt-routed pruning, after arXiv 2406.12042: each prompt runs on the pruned denoiser that suits it."""

    name = "aptp"
    summary = "a router selects a physically pruned denoiser for each prompt"
    config_class = AptpConfig
    requires = (PrunableUnits,)
    varies_by_prompt = True

    def claims(self, target: Target) -> Sequence[Claim]:
        """Weights change their shapes between groups of prompts, and so do the heads in a cache of keys and values."""
        claims = [Claim("weights.structure", Access.EXCLUSIVE)]
        if target.adapter.capability(ScaleSchedule) is not None:
            claims.append(Claim("attention.kv", Access.EXCLUSIVE))
        if self._segments(target):
            # The expert changes between two steps: heads cached for a layer would be those of another expert.
            claims.append(Claim("attention.self", Access.EXCLUSIVE))
        return claims

    def _segments(self, target: Target) -> tuple[float, ...]:
        try:
            return self._bundle(target).manifest.segments
        except HastenError:
            return ()  # `check` reports the error

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse a bundle that was not made for this pipeline."""
        if len(target.denoisers) != 1:
            yield Finding(
                "error", f"it supports pipelines with one denoiser, and this one has {len(target.denoisers)}"
            )
            return
        if step_caches(target):
            return  # the host refuses it, with the cache's name
        from hasten.plugins.aptp.base_model import plain_base

        try:
            plain_base(_denoiser(target))
            bundle = self._bundle(target)
            self._prepare(target, bundle, _denoiser(target))
        except UnsupportedError as error:
            yield Finding("error", str(error))
            return
        if bundle.manifest.segments and target.adapter.capability(ScaleSchedule) is not None:
            yield Finding(
                "error", "timestep segments would change the heads that the cache of keys and values holds"
            )
        choices = len(bundle.manifest.choices)
        if self.config.route == "static" and (self.config.expert or 0) >= choices:
            yield Finding("error", f"expert={self.config.expert}: the bundle has experts 0 to {choices - 1}")
        shares = ", ".join(f"{expert.macs_share:.0%}" for expert in bundle.manifest.experts)
        size = bundle.manifest.size
        yield Finding(
            "note",
            f"{len(bundle.experts)} experts at {shares} of the multiply-accumulates, counted at {size.height} x "
            f"{size.width} latents and {size.text} text tokens",
        )

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:  # noqa: ARG002
        """Every step at the cost of its expert."""
        from hasten.plugins.aptp.forecast import forecast

        return forecast(self.config, self._bundle(target).manifest, before)

    def attach(self, target: Target, seams: Seams) -> None:
        """Wrap the pipeline call, and every forward for the report."""
        from hasten.plugins.aptp.base_model import Base
        from hasten.plugins.aptp.encoder import make_encoder
        from hasten.plugins.aptp.experts import Experts
        from hasten.plugins.aptp.routing import Routing

        bundle = self._bundle(target)
        base = Base(bundle, lambda denoiser: self._prepare(target, bundle, denoiser))
        encoder = make_encoder(bundle.manifest.router.encoder, bundle.manifest.router.model, target.pipe)
        config = self.config

        def time(kwargs: Mapping[str, Any]) -> float:
            return target.moments.level(target.pipe, kwargs).time

        experts = Experts(bundle, base, config, time)
        denoiser = _denoiser(target)
        experts.follow(denoiser)
        if config.residency == "all":
            for number in range(len(bundle.manifest.choices)):
                experts.get(number, denoiser)
        routing = Routing(self.name, config, target, bundle, encoder, experts)
        seams.run(routing.run)
        seams.denoiser(routing.record)

    def _bundle(self, target: Target) -> Bundle:
        from hasten.plugins.aptp.bundle import Bundle

        if self.config.bundle is not None:
            return Bundle.load(self.config.bundle)
        for folder in sorted(BUNDLES.glob("*/aptp.json")):
            bundle = Bundle.load(folder.parent)
            with suppress(UnsupportedError):
                self._prepare(target, bundle, _denoiser(target))
                return bundle
        raise UnsupportedError(
            f"aptp needs a bundle made for this {target.name}; set aptp.bundle=DIR. Make one with `hasten aptp "
            f"prepare`, `search`, `tune` and `export`"
        )

    def _prepare(self, target: Target, bundle: Bundle, denoiser: nn.Module) -> tuple[nn.Module, Structure]:
        from hasten.plugins.aptp.base_model import prepare

        return prepare(target, bundle, denoiser, weights=self.config.base_check == "weights")


def _denoiser(target: Target) -> nn.Module:
    return next(iter(target.denoisers.values()))


@hookimpl
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Offer the technique to the host."""
    register(Aptp)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Offer ``hasten aptp``."""
    from hasten.plugins.aptp.commands import app as commands

    app.add_typer(commands, name="aptp")

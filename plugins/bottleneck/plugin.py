"""The technique ``bottleneck``: claims, checks, attaching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.extend import Access, Claim, Finding, Forecast, LatentLayout, Technique, hookimpl
from hasten.plugins.bottleneck.config import BottleneckConfig, ContinuousConfig, RestartConfig
from hasten.plugins.bottleneck.levels import spectrum_for

if TYPE_CHECKING:
    import typer

    from hasten.extend import Seams, StepRecord, Target

__all__ = ["Bottleneck"]


class Bottleneck(Technique[BottleneckConfig]):
    """Bottleneck Sampling, arXiv 2503.18940: a share of the steps on a smaller latent, without training."""

    name = "bottleneck"
    summary = "runs steps that do not need full resolution at a lower one"
    config_class = BottleneckConfig
    requires = (LatentLayout,)

    def claims(self, target: Target) -> Sequence[Claim]:  # noqa: ARG002
        """The number of tokens changes during a run; restart mode also changes the noise levels."""
        shape = Claim("tokens.shape", Access.WRITES)
        if isinstance(self.config, ContinuousConfig):
            return (shape,)
        return (shape, Claim("steps.schedule", Access.WRITES))

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse denoisers with a fixed size; warn if the spectrum of the latents is unknown."""
        reason = target.layout.refusal(target.pipe)
        if reason is not None:
            yield Finding("error", reason)
            return
        if isinstance(self.config, RestartConfig):
            from hasten.plugins.bottleneck.restart import findings

            yield from findings(self.config, target)
            return
        rigid = target.layout.rigid_controls
        if rigid and self.config.control == "full" and target.control_network is not None:
            yield Finding("error", f"control='full' does not work on {target.name}: {rigid}; use 'low'")
        if self.config.low_until == "auto" and spectrum_for(self.config, target.pipe)[1] is None:
            yield Finding("warning", self._unknown(target))
        if isinstance(self.config.low_until, float) and self.config.low_until > self.config.high_first:
            yield Finding("warning", "low_until is above high_first: no step will run at low resolution")

    def _unknown(self, target: Target) -> str:
        """Warning for an unknown spectrum."""
        from hasten.plugins.bottleneck.learned import autoencoder_of, may_differ

        bound = (
            "no power spectrum is known for this autoencoder, so the bound for latents of unit variance is "
            "used, which allows few low-resolution steps"
        )
        learns = isinstance(self.config, ContinuousConfig) and self.config.learn_spectrum and not may_differ()
        if learns and autoencoder_of(target.pipe) is not None:
            return (
                f"{bound}. The first call measures the spectrum and later calls use it; `hasten spectrum "
                f"MODEL` measures it in advance"
            )
        return f"{bound}. Fit one with `hasten spectrum MODEL --out FILE`, or set low_until, for a larger speed-up"

    def check_call(self, target: Target, arguments: Mapping[str, Any]) -> Iterable[Finding]:
        """Warn if no step will run at low resolution; refuse input pictures in restart mode."""
        if isinstance(self.config, RestartConfig):
            from hasten.plugins.bottleneck.restart import call_refusal

            reason = call_refusal(target, arguments)
            return () if reason is None else (Finding("error", reason),)
        from hasten.plugins.bottleneck.forecast import call_findings

        return call_findings(self.config, target, arguments)

    def review(self, steps: Sequence[StepRecord]) -> Iterable[str]:
        """Report that no forward, or the last one, ran at low resolution, and what was measured."""
        if isinstance(self.config, RestartConfig):
            return
        low = [step.facts.get(self.name, {}).get("phase") == "low" for step in steps]
        if not any(low):
            yield "no step ran at low resolution"
        for facts in (step.facts.get(self.name, {}) for step in steps):
            if "kept" in facts:
                yield f"the spectrum of the latents was measured and stored in {facts['kept']}; the next call uses it"
            if "not_measured" in facts:
                yield f"the spectrum of the latents could not be measured: {facts['not_measured']}"
        if low[-1]:  # ended early by the user, or a schedule that could not be read
            yield "the last forward was at low resolution, so the result lacks detail"

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:
        """Resolution, level and FLOPs of every step of a call with these arguments."""
        from hasten.plugins.bottleneck.forecast import forecast

        return forecast(self.config, target, arguments, before)

    def attach(self, target: Target, seams: Seams) -> None:
        """Add the handlers of the mode to the seams."""
        if isinstance(self.config, ContinuousConfig):
            from hasten.plugins.bottleneck.continuous import VirtualResolution

            virtual = VirtualResolution(self.name, self.config, target)
            seams.denoiser(virtual)
            if self.config.control == "low" and target.control_network is not None:
                seams.control(virtual.control)
        else:
            from hasten.plugins.bottleneck.restart import Restart

            restart = Restart(self.name, self.config, target)
            seams.scheduler(restart.stage_scheduler)
            seams.denoiser(restart.rewrite_positions)


@hookimpl
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Offer the technique to the host."""
    register(Bottleneck)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Offer ``hasten spectrum``."""
    from hasten.plugins.bottleneck.commands import add_commands

    add_commands(app)

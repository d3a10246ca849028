"""Compute the denoiser at every other step and use each prediction twice: a complete technique."""

from __future__ import annotations

from collections.abc import Callable

from hasten.extend import Access, Claim, DenoiserCall, Seams, Target, Technique, TechniqueConfig, hookimpl


class EveryOther(Technique[TechniqueConfig]):
    name = "every_other"
    summary = "use each prediction for two steps"
    config_class = TechniqueConfig

    def claims(self, target: Target) -> list[Claim]:
        return [
            Claim("tokens.shape", Access.READS, follows_writes=False),
            Claim("batch.branches", Access.READS, follows_writes=False),
        ]

    def attach(self, target: Target, seams: Seams) -> None:
        seams.denoiser(self.forward)

    def forward(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], object]) -> object:
        kept, key = call.run.state(self.name), (call.denoiser, call.step.branch)
        if call.step.index % 2 == 0 or key not in kept:
            kept[key] = proceed(call)
        return kept[key]


@hookimpl
def hasten_register_techniques(register: Callable[[type[EveryOther]], None]) -> None:
    register(EveryOther)

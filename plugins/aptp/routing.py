"""The run handler: routes prompts, runs each group on its expert, and returns the pictures in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hasten.extend import DenoiserCall, RunCall, swapped
from hasten.plugins.aptp.agreement import agree
from hasten.plugins.aptp.batching import check_splittable, drawn_once, merge, part_of_call, sample_indices
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.encoder import Encoder
from hasten.plugins.aptp.experts import Experts
from hasten.plugins.aptp.prompt_groups import group_prompts
from hasten.plugins.aptp.router import BASE, Decision, random_expert
from hasten.plugins.aptp.timestep_segments import segment_of

if TYPE_CHECKING:
    from hasten.extend import Target

__all__ = ["Routing", "decide"]


@dataclass(frozen=True)
class _Current:
    """The group that is running."""

    pipe: Any
    base: nn.Module
    """The denoiser of the pipeline outside of the run."""
    expert: int
    samples: tuple[int, ...]
    decisions: tuple[Decision, ...]


_current: ContextVar[_Current | None] = ContextVar("hasten_aptp_group", default=None)


def decide(prompt: str, bundle: Bundle, encoder: Encoder, config: AptpConfig) -> Decision:
    """The decision for a prompt, which depends on the prompt alone."""
    if config.route == "static":
        return Decision(config.expert or 0, 1.0, "static")
    if config.fallback and not prompt.strip():
        return Decision(BASE, 1.0, "no text")
    if config.fallback and encoder.too_long(prompt):
        return Decision(BASE, 1.0, "too long")
    embedding = encoder.encode(prompt)
    if config.fallback and bundle.router.familiarity(embedding) < bundle.router.threshold:
        return Decision(BASE, 1.0, "unfamiliar")
    if config.route == "random":
        shares = torch.tensor([route.traffic for route in bundle.manifest.choices])
        return Decision(random_expert(prompt, shares), 1.0, "random")
    probabilities = bundle.router.probabilities(embedding)
    best = int(probabilities.argmax())
    confidence = float(probabilities[best])
    if confidence < config.min_confidence:
        return Decision(BASE, confidence, "unsure")
    return Decision(best, confidence, "router")


class Routing:
    """Handlers of the technique on one pipeline.

    Args:
        name: name of the technique, for the report.
        config: its options.
        target: the pipeline.
        bundle: router and manifest.
        encoder: prompt encoder of the router.
        experts: the experts in memory.
    """

    def __init__(
        self,
        name: str,
        config: AptpConfig,
        target: Target,
        bundle: Bundle,
        encoder: Encoder,
        experts: Experts,
    ) -> None:
        self._name, self._config, self._target = name, config, target
        self._bundle, self._encoder, self._experts = bundle, encoder, experts
        self._decided: dict[str, Decision] = {}
        self._shares = {i: r.macs_share for i, r in enumerate(bundle.manifest.choices)} | {BASE: 1.0}

    def run(self, call: RunCall, proceed: Callable[[RunCall], Any]) -> Any:
        """Wrap the pipeline call."""
        self._experts.follow(self._base())
        prompts = _prompts_of(call)
        if prompts is None:
            # Embeddings cannot be routed, and the whole model suits every prompt.
            return self._on_expert(call, proceed, BASE, (), (Decision(BASE, 1.0, "no text"),))
        copies = int(call.arguments.get("num_images_per_prompt") or 1)
        decisions = [self.decide(prompt) for prompt in prompts]
        if self._config.ranks == "together":
            decisions = agree(decisions)
        groups, final = group_prompts(decisions, self._shares, self._config, self._experts.resident, copies)
        everyone = tuple(sample_indices(range(len(prompts)), copies))
        if len(groups) == 1:
            return self._on_expert(call, proceed, groups[0].expert, everyone, tuple(final))
        check_splittable(call)
        draws = drawn_once(call, len(everyone))
        outputs, places = [], []
        for group in groups:
            samples = tuple(sample_indices(group.prompts, copies))
            part = part_of_call(call, group.prompts, len(prompts), copies)
            with nullcontext() if draws is None else draws.part(call.pipe, samples):
                chosen = tuple(final[i] for i in group.prompts)
                outputs.append(self._on_expert(part, proceed, group.expert, samples, chosen))
            places.append(samples)
        return merge(outputs, places)

    def decide(self, prompt: str) -> Decision:
        """The decision for a prompt, cached."""
        if prompt not in self._decided:
            self._decided[prompt] = decide(prompt, self._bundle, self._encoder, self._config)
        return self._decided[prompt]

    def record(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """Wrap every forward, to report its expert and pictures."""
        current = _current.get()
        if current is not None and call.step.index == 0:
            call.run.record(
                self._name,
                expert="base" if current.expert == BASE else current.expert,
                pictures=list(current.samples),
                confidence=[round(d.confidence, 4) for d in current.decisions],
                reason=[d.reason for d in current.decisions],
                macs_share=round(self._shares[current.expert], 4),
            )
        manifest = self._bundle.manifest
        if current is not None and current.expert != BASE and manifest.segments:
            segment = segment_of(call.step.noise.time, manifest.segments)
            number = manifest.routes[current.expert].experts[segment]
            call.run.record(self._name, segment=segment, segment_expert=number)
        return proceed(call)

    def _on_expert(
        self,
        call: RunCall,
        proceed: Callable[[RunCall], Any],
        expert: int,
        samples: tuple[int, ...],
        decisions: tuple[Decision, ...],
    ) -> Any:
        base = self._base()
        token = _current.set(_Current(call.pipe, base, expert, samples, decisions))
        try:
            with swapped(call.pipe, next(iter(self._target.denoisers)), self._experts.get(expert, base)):
                return proceed(call)
        finally:
            _current.reset(token)
            self._experts.release()

    def _base(self) -> nn.Module:
        """The user's denoiser. During a call, for example in a callback, the pipeline has an expert in its place."""
        current = _current.get()
        held = next(iter(self._target.denoisers.values()))
        return held if current is None or current.pipe is not self._target.pipe else current.base


def _prompts_of(call: RunCall) -> Sequence[str] | None:
    prompt = call.arguments.get("prompt")
    if prompt is None or call.arguments.get("prompt_embeds") is not None:
        return None
    return [prompt] if isinstance(prompt, str) else list(prompt)

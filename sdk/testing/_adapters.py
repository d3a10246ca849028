"""The contract of adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import hasten
from hasten._adapters.base import Adapter, Guidance, LatentLayout
from hasten._adapters.tokens import AttentionTokens
from hasten._attention import AttentionCall, attention_layers
from hasten._claims import Access, Claim
from hasten._clock import expected_batch
from hasten._compat import unwrapped
from hasten._denoiser import DenoiserCall
from hasten._numerics import tensors_of
from hasten._seams import Seams
from hasten._target import Target
from hasten._technique import Technique, TechniqueConfig
from hasten._timesteps import by_step, planned_levels
from hasten.testing._pipelines import PipelineContract
from hasten.testing._registered import known_adapter, known_technique

__all__ = ["AdapterContract"]


class AdapterContract(PipelineContract):
    """Contract tests of an adapter.

    Attributes:
        adapter: the object; it need not be installed.
        resized: whether forwards at half the size are tested, too.
    """

    adapter: ClassVar[Adapter]
    resized: ClassVar[bool] = True

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        with known_technique(_Probe), known_technique(_AttentionProbe), known_adapter(self.adapter):
            yield

    @pytest.fixture
    def calls(self) -> list[tuple[DenoiserCall, Any]]:
        """Every denoiser forward of one call, with its output."""
        _Probe.seen = []
        pipe = self.pipeline()
        with hasten.accelerate(pipe, [_Probe.name]):
            self.call(pipe)
        return _Probe.seen

    def test_the_adapter_is_found(self) -> None:
        """The pipeline's class is one that the adapter names."""
        assert Target.of(self.pipeline()).adapter is self.adapter

    def test_a_run_that_changes_nothing_is_stock(self) -> None:
        """A run without changes gives bit-identical output."""
        pipe = self.pipeline()
        stock = self.call(pipe)
        with hasten.accelerate(pipe, [_Probe.name]):
            assert torch.equal(self.call(pipe), stock)

    def test_levels_fall_from_noise_to_clean(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """The noise level of each forward is in [0, 1] and never rises within a run."""
        levels = [call.step.noise.time for call, _ in calls]
        path = "correct the layout's path, or its names of the latents and the timestep"
        assert all(0 <= level <= 1 for level in levels), f"levels {levels} are not in [0, 1]: {path}"
        assert levels == sorted(levels, reverse=True), f"levels {levels} rise: {path}"
        assert len(set(levels)) > 1, f"all forwards are at level {levels[0]}: {path}"

    def test_the_size_of_a_call_is_known_before_it(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """``call_size`` predicts what ``size`` then reads from the forward."""
        target, layout = self._layout()
        expected = layout.call_size(target.pipe, target.call_arguments(**self.arguments))
        assert {layout.size(target.pipe, call.kwargs) for call, _ in calls} == {expected}

    def test_the_levels_of_a_call_are_known_before_it(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """``planned_levels`` predicts the levels of the forwards, to the rounding of timesteps."""
        target, layout = self._layout()
        arguments = target.call_arguments(**self.arguments)
        planned = planned_levels(target, arguments, layout.call_size(target.pipe, arguments))
        seen = {(call.step.index, call.step.noise.time) for call, _ in calls}
        expected = [level.time for level, _ in by_step(planned)]
        assert [time for _, time in sorted(seen)] == pytest.approx(expected, abs=2e-3)

    def test_latents_survive_a_round_trip(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """``encode`` of what ``decode`` returned gives the arguments back."""
        target, layout = self._layout()
        for call, _ in calls:
            latent = layout.decode(target.pipe, call.kwargs)
            changed = layout.encode(target.pipe, call.kwargs, latent, call.step.noise)
            for name, value in changed.items():
                for ours, theirs in zip(_tensors(value), _tensors(call.kwargs[name]), strict=True):
                    # timesteps that a scheduler rounds come back unrounded
                    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5, check_dtype=False)

    def test_outputs_survive_a_round_trip(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """``encode_output`` of what ``decode_output`` returned has the prediction's shape and decodes to the same.

        What the pipeline does not read of a prediction, such as tokens of reference pictures, may differ.
        """
        target, layout = self._layout()
        for call, output in calls:
            sample = call.sample(output)
            latent = layout.decode_output(target.pipe, call.kwargs, sample)
            again = layout.encode_output(target.pipe, call.kwargs, latent)
            for ours, theirs in zip(tensors_of(again), tensors_of(sample), strict=True):
                assert ours.shape == theirs.shape
            torch.testing.assert_close(layout.decode_output(target.pipe, call.kwargs, again), latent)

    def test_half_the_size_is_computed(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """The denoiser accepts the arguments that ``encode`` makes for a latent of half the height and width."""
        target, layout = self._layout()
        refusal = layout.refusal(target.pipe)
        if not self.resized or refusal is not None:
            pytest.skip(refusal or "the family has one size")
        call, _ = calls[0]
        latent = layout.decode(target.pipe, call.kwargs)
        half = latent[..., : latent.shape[-2] // 2, : latent.shape[-1] // 2].contiguous()
        smaller = call.replace_kwargs(layout.encode(target.pipe, call.kwargs, half, call.step.noise))
        with torch.no_grad():
            sample = call.sample(call.module(**smaller.kwargs))
        size = layout.size(target.pipe, smaller.kwargs)
        decoded = layout.decode_output(target.pipe, smaller.kwargs, sample)
        assert (size.height, size.width) == tuple(half.shape[-2:])
        assert decoded.shape[-2:] == half.shape[-2:]
        assert decoded.isfinite().all()

    def test_guidance_is_as_declared(self, calls: list[tuple[DenoiserCall, Any]]) -> None:
        """Batched guidance has one forward at each level; others have one sample for each latent in a forward."""
        _, layout = self._layout()
        branches = [call.step.branch for call, _ in calls if not call.step.branch.startswith("extra")]
        asked = expected_batch(Target.of(self.pipeline()).call_arguments(**self.arguments)) or 1
        sizes = {len(next(iter(call.kwargs.values()))) for call, _ in calls}
        told = f"guidance is {layout.guidance}, and the forwards have {sorted(sizes)} samples for {asked} pictures"
        if layout.guidance is Guidance.BATCHED:
            levels = [call.step.index for call, _ in calls if not call.step.branch.startswith("extra")]
            assert len(levels) == len(set(levels)) or "both" in branches, f"{told}, several at one level"
        else:
            assert max(sizes) <= asked, told

    def test_attention_layers_are_seen(self) -> None:
        """The denoisers hold attention layers, and ``AttentionTokens`` names some of them."""
        layers = attention_layers(Target.of(self.pipeline()))
        assert layers, f"none of {self.adapter.denoisers} holds a module with an attention processor"
        tokens = self.adapter.capability(AttentionTokens)
        if tokens is not None:
            inner = sorted(name.partition(".")[2] for name in layers)
            assert any(tokens.selects(name) for name in inner), f"AttentionTokens matches none of {inner}"

    def test_attention_has_the_tokens_that_the_adapter_says(self) -> None:
        """Every layer that ``AttentionTokens`` selects attends over the grid and the text that it describes."""
        if self.adapter.capability(AttentionTokens) is None:
            pytest.skip("the family has no token layout")
        pipe = self.pipeline()
        with hasten.accelerate(pipe, [_AttentionProbe.name]):
            self.call(pipe)

    def _layout(self) -> tuple[Target, LatentLayout]:
        target = Target.of(self.pipeline())
        layout = self.adapter.capability(LatentLayout)
        if layout is None:
            pytest.skip("the family has no latent layout")
        return target, layout


class _AttentionProbe(Technique[TechniqueConfig]):
    """Reads the grid of every attention call, which raises an error where it does not fit; changes nothing."""

    name = "contract_attention_probe"
    summary = "reads token grids"
    config_class = TechniqueConfig

    def claims(self, target: Target) -> list[Claim]:  # noqa: ARG002
        """Nothing is changed."""
        return [Claim("tokens.shape", Access.READS)]

    def attach(self, target: Target, seams: Seams) -> None:
        """One handler on every layer that the adapter selects."""
        tokens = target.capability(AttentionTokens)

        def look(call: AttentionCall, proceed: Callable[[AttentionCall], Tensor]) -> Tensor:
            denoiser, _, layer = call.layer.partition(".")
            if call.key.shape[2] == call.query.shape[2]:
                size = target.layout.size(target.pipe, call.arguments)
                root = unwrapped(target.denoisers[denoiser])
                tokens.observed(root, layer, size, call.arguments, call.query.shape[2])
            return proceed(call)

        names = [name for name in attention_layers(target) if tokens.selects(name.partition(".")[2])]
        seams.attention(look, names)


class _Probe(Technique[TechniqueConfig]):
    """Remembers every denoiser forward and changes nothing."""

    name = "contract_probe"
    summary = "remembers denoiser forwards"
    config_class = TechniqueConfig
    seen: ClassVar[list[tuple[DenoiserCall, Any]]] = []

    def claims(self, target: Target) -> list[Claim]:  # noqa: ARG002
        """Nothing is changed."""
        return [Claim("tokens.shape", Access.READS)]

    def attach(self, target: Target, seams: Seams) -> None:  # noqa: ARG002
        """One handler that looks on."""

        def look(call: DenoiserCall, proceed: Any) -> Any:
            output = proceed(call)
            self.seen.append((call, output))
            return output

        seams.denoiser(look)


def _tensors(value: Any) -> list[Tensor]:
    """The tensors of an argument: itself or its items; none of a number, a flag or ``None``."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return [item for item in items if isinstance(item, Tensor)]

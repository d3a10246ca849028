"""The contract of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import hasten
from hasten._adapters.base import Adapter, LatentLayout
from hasten._attention import attention_layers
from hasten._claims import Access, Claim
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
        with known_technique(_Probe), known_adapter(self.adapter):
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
        assert levels == sorted(levels, reverse=True)
        assert all(0 <= level <= 1 for level in levels)
        assert len(set(levels)) > 1

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
        """``encode_output`` of what ``decode_output`` returned gives the prediction back."""
        target, layout = self._layout()
        for call, output in calls:
            sample = call.sample(output)
            latent = layout.decode_output(target.pipe, call.kwargs, sample)
            again = layout.encode_output(target.pipe, call.kwargs, latent)
            for ours, theirs in zip(tensors_of(again), tensors_of(sample), strict=True):
                torch.testing.assert_close(ours, theirs)

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

    def test_attention_layers_are_seen(self) -> None:
        """The denoisers hold attention layers by the names that the host knows."""
        assert attention_layers(Target.of(self.pipeline()))

    def _layout(self) -> tuple[Target, LatentLayout]:
        target = Target.of(self.pipeline())
        layout = self.adapter.capability(LatentLayout)
        if layout is None:
            pytest.skip("the family has no latent layout")
        return target, layout


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

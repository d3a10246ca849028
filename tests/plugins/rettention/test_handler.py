"""Statistics over the steps of a run: what is kept, for whom, and when it is dropped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, baseline, call_kwargs
from slow import attention, band_mask

import hasten
from hasten._errors import UnsupportedError
from hasten._target import Target
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.handler import SparseAttention

OPTIONS: dict[str, Any] = {"keep_ratio": 0.3, "warmup": 0, "min_tokens": 4}
LAYER = "transformer.transformer_blocks.0.attn1"
TOKENS = 24
"""Image tokens of the tiny PixArt: a 4 x 6 grid."""


class FakeRun:
    """As much of a run as the handler asks for."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.arguments = {**call_kwargs("pixart-sigma"), "num_inference_steps": 50}
        self.step: Any = None
        self._states: dict[str, Any] = {}
        self.facts_later: Any = dict

    def state(self, owner: str) -> dict[str, Any]:
        return self._states.setdefault(owner, {})

    def record_later(self, owner: str, facts: Any) -> None:
        self.facts_later = facts

    @property
    def facts(self) -> dict[str, Any]:
        return self.facts_later()


class Bench:
    """The handler on one layer of a tiny PixArt, called with operands of one's own."""

    def __init__(self, **options: Any) -> None:
        self.pipe = FAMILIES["pixart-sigma"]()
        self.target = Target.of(self.pipe)
        self.run = FakeRun(self.pipe)
        self.handler = SparseAttention(
            "rettention", RettentionConfig(**{**OPTIONS, **options}), self.target, [LAYER]
        )
        self.dense_calls = 0

    def call(self, qkv: Any, step: int, branch: str = "both", **changes: Any) -> torch.Tensor:
        size = SimpleNamespace(frames=None)
        self.run.step = SimpleNamespace(index=step, branch=branch, size=size)
        query, key, value = qkv
        call = SimpleNamespace(
            layer=LAYER,
            query=query,
            key=key,
            value=value,
            mask=None,
            dropout=0.0,
            causal=False,
            scale=None,
            grouped=False,
            arguments={"hidden_states": torch.zeros(2, 4, 8, 12)},
            step=self.run.step,
            run=self.run,
            backend=None,
            part=0,
            parts=1,
            segment=None,
        )
        vars(call).update(changes)
        return self.handler(call, self._dense)

    def _dense(self, call: Any) -> torch.Tensor:
        self.dense_calls += 1
        return torch.nn.functional.scaled_dot_product_attention(
            call.query, call.key, call.value, attn_mask=call.mask, enable_gqa=call.grouped
        )

    @property
    def phase(self) -> str:
        return next(iter(self.run.facts["layers"]))


def operands(
    seed: int = 0, batch: int = 2, dtype: torch.dtype = torch.float32, dim: int = 12
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, TOKENS, 3, dim, generator=generator).to(dtype).transpose(1, 2) for _ in range(3)
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("mask", ["block", "reference", "tile2d"])
def test_sparse_on_the_inputs_of_the_refresh_is_dense(dtype, tolerance, mask):
    bench = Bench(ramp=0.0, mask=mask)
    qkv = operands(dtype=dtype)
    refreshed, sparse = bench.call(qkv, 0), bench.call(qkv, 1)
    assert bench.phase == "sparse"
    assert bench.dense_calls == 1
    expected = torch.nn.functional.scaled_dot_product_attention(*qkv)
    assert torch.equal(refreshed, expected)
    assert (sparse.float() - expected.float()).norm() <= tolerance * expected.float().norm()
    assert sparse.dtype == dtype


def test_the_ramp_is_added_after_use():
    bench = Bench(mask="reference", ramp=0.04)
    first, later = operands(0), operands(1)
    grid = SimpleNamespace(positions=TOKENS, total=TOKENS, tokens=TOKENS, before=0)
    mask = band_mask(grid, 0.3)  # type: ignore[arg-type]
    full, lse = attention(*first)
    kept, lse_kept = attention(*first, mask)
    rho = torch.exp(lse_kept - lse)[..., None]
    rest = full - rho * kept
    bench.call(first, 0)
    for step in (1, 2, 3, 4):
        found = bench.call(later, step)
        expected = (rho + 0.04 * (step - 1)) * attention(*later, mask)[0] + rest
        assert (found - expected).abs().max() < 1e-5, step
        assert torch.equal(bench.call(later, step), found), "a second call at the same step ramps no further"


def test_corrections_leave_out_what_they_say():
    first, later = operands(0), operands(1)
    windows = Bench(correction="none", mask="reference")
    rest = Bench(correction="residual", mask="reference")
    mask = band_mask(SimpleNamespace(positions=TOKENS, total=TOKENS, tokens=TOKENS, before=0), 0.3)  # type: ignore[arg-type]
    for bench in (windows, rest):
        bench.call(first, 0)
    kept = attention(*later, mask)[0]
    assert (windows.call(later, 1) - kept).abs().max() < 1e-5
    expected = kept + attention(*first)[0] - attention(*first, mask)[0]
    assert (rest.call(later, 1) - expected).abs().max() < 1e-5


def test_measured_ratio_is_exact_where_every_query_is_a_sample():
    bench = Bench(ramp="measured", samples=TOKENS)
    qkv = operands()
    dense = bench.call(qkv, 0)
    assert (bench.call(qkv, 1) - dense).abs().max() < 1e-5


def test_drift_refreshes_a_layer_before_a_bad_result_is_used():
    bench = Bench(drift=0.05, ramp=0.0, samples=TOKENS, period=20)
    first = operands(0)
    bench.call(first, 0)
    bench.call(first, 1)
    assert bench.phase == "sparse"
    assert bench.run.facts["drift"] < 1e-4
    changed = operands(1)
    assert torch.equal(bench.call(changed, 2), torch.nn.functional.scaled_dot_product_attention(*changed))
    bench.call(changed, 3)
    assert bench.dense_calls == 2
    bench.call(changed, 22)
    assert bench.dense_calls == 3, "and at the latest after a period"


def test_no_layer_waits_for_the_device(monkeypatch):
    def wait(self: torch.Tensor) -> Any:
        raise AssertionError("a number was read from the device inside of a layer")

    bench = Bench()
    bench.call(operands(0), 0)  # makes the tables of the mask
    with monkeypatch.context() as patched:
        for name in ("__float__", "__bool__", "item", "tolist"):
            patched.setattr(torch.Tensor, name, wait)
        bench.call(operands(1), 1)
        sparse = bench.run.facts_later
        bench.call(operands(2), 5)
    assert sparse()["layers"] == {"sparse": 1}
    assert bench.phase == "refresh"
    assert 0 < bench.run.facts["rho"] < 1


def test_branches_do_not_share():
    bench = Bench(ramp=0.0)
    cond, uncond = operands(0), operands(1)
    dense = {name: bench.call(x, 0, name) for name, x in (("cond", cond), ("uncond", uncond))}
    for name, x in (("cond", cond), ("uncond", uncond)):
        assert (bench.call(x, 1, name) - dense[name]).abs().max() < 1e-5
    assert bench.dense_calls == 2


@pytest.mark.parametrize("change", ["batch", "type", "size"])
def test_another_shape_starts_anew(change):
    bench = Bench(ramp=0.0)
    bench.call(operands(0), 0)
    other: dict[str, Any] = {}
    qkv = operands(1)
    if change == "batch":
        qkv = operands(1, batch=1)
    elif change == "type":
        qkv = operands(1, dtype=torch.bfloat16)
    else:
        qkv = [x[:, :, :16] for x in qkv]
        other = {"arguments": {"hidden_states": torch.zeros(2, 4, 8, 8)}}
    assert torch.equal(bench.call(qkv, 1, **other), torch.nn.functional.scaled_dot_product_attention(*qkv))
    assert bench.dense_calls == 2
    bench.call(qkv, 2, **other)
    assert bench.dense_calls == 2


def test_a_size_that_comes_back_starts_anew_even_if_the_other_one_was_dense():
    bench = Bench(ramp=0.0, min_tokens=20)
    small = {"arguments": {"hidden_states": torch.zeros(2, 4, 8, 8)}}
    bench.call(operands(0), 0)
    bench.call([x[:, :, :16] for x in operands(0)], 1, **small)
    assert bench.phase == "dense"
    again = operands(1)
    assert torch.equal(bench.call(again, 2), torch.nn.functional.scaled_dot_product_attention(*again))
    assert bench.phase == "refresh"


def test_a_layer_that_missed_a_refresh_makes_up_for_it():
    bench = Bench(ramp=0.0)
    bench.call(operands(0), 0)
    bench.call(operands(1), 6)
    assert bench.phase == "refresh"
    listed = Bench(ramp=0.0, refresh=(0,))
    listed.call(operands(0), 0)
    listed.call(operands(1), 6)
    assert listed.phase == "sparse"


def test_grouped_queries_are_exact():
    bench = Bench(ramp=0.0)
    q, k, v = operands()
    grouped = [q, k[:, :1], v[:, :1]]
    dense = bench.call(grouped, 0, grouped=True)
    assert (bench.call(grouped, 1, grouped=True) - dense).abs().max() < 1e-5
    assert bench.dense_calls == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": True}, "is causal"),
        ({"dropout": 0.1}, r"probability 0.1: set the model to evaluation mode"),
        ({"mask": torch.ones(2, 1, TOKENS, TOKENS, dtype=torch.bool).tril()}, "one row per query"),
        ({"mask": torch.ones(2, 2, 1, TOKENS, dtype=torch.bool)}, "one row per query or head"),
        ({"mask": torch.rand(2, 1, 1, TOKENS)}, "adds a bias"),
        ({"mask": torch.arange(TOKENS).view(1, 1, 1, -1) > 3}, "hides tokens of the picture"),
    ],
)
def test_what_sparse_attention_would_get_wrong_is_refused(changes, message):
    with pytest.raises(UnsupportedError, match=message):
        Bench(warmup=3).call(operands(), 0, **changes)  # before the first step, not when the warm-up is over


def test_gradients_are_refused():
    with pytest.raises(UnsupportedError, match=r"computed with gradients.*torch\.no_grad"):
        Bench().call([x.requires_grad_() for x in operands()], 0)


def test_masks_that_hide_by_ten_thousand_are_masks_in_half_precision_too():
    hidden = torch.zeros(2, 1, 1, TOKENS, dtype=torch.bfloat16)
    hidden[..., 5] = -10_000.0
    with pytest.raises(UnsupportedError, match="hides tokens of the picture"):
        Bench().call(operands(dtype=torch.bfloat16), 0, mask=hidden)


def test_autocast_computes_in_its_type():
    bench = Bench(ramp=0.0)
    q, k, v = operands()
    mixed = [q, k, v.bfloat16()]  # a norm or a rotary embedding leaves queries and keys in single precision
    with torch.autocast("cpu", torch.bfloat16):
        dense, sparse = bench.call(mixed, 0), bench.call(mixed, 1)
    assert bench.phase == "sparse"
    assert dense.dtype == sparse.dtype == torch.bfloat16
    assert (sparse.float() - dense.float()).norm() < 2e-2 * dense.float().norm()


def test_a_mask_that_hides_nothing_is_no_obstacle():
    bench = Bench(ramp=0.0)
    mask = torch.ones(2, 1, 1, TOKENS, dtype=torch.bool)
    dense = bench.call(operands(), 0, mask=mask)
    assert (bench.call(operands(), 1, mask=mask) - dense).abs().max() < 1e-5


def test_cross_attention_in_the_same_layer_passes_through():
    bench = Bench()
    q, k, v = operands()
    given = [q, k[:, :, :7], v[:, :, :7]]
    assert torch.equal(bench.call(given, 0), torch.nn.functional.scaled_dot_product_attention(*given))
    assert bench.dense_calls == 1


def test_another_number_of_tokens_than_the_latents_have_is_refused():
    with pytest.raises(UnsupportedError, match="attends over 20 tokens"):
        Bench().call([x[:, :, :20] for x in operands()], 0)


def test_float8_residuals_take_a_quarter_and_stay_near():
    exact, small = Bench(ramp=0.0), Bench(ramp=0.0, cache_dtype="float8")
    dense = exact.call(operands(), 0)
    small.call(operands(), 0)
    assert small.run.facts["cache_bytes"] == 2 * 3 * TOKENS * (12 + 4 + 4)
    assert exact.run.facts["cache_bytes"] == 2 * 3 * TOKENS * (4 * 12 + 4)
    assert (small.call(operands(), 1) - dense).norm() < 0.05 * dense.norm()


def test_offloading_on_a_cpu_is_refused():
    with pytest.raises(
        UnsupportedError, match=r"offload=true .* the model runs on cpu and they are already there"
    ):
        Bench(offload=True, warmup=3).call(operands(), 0)


def test_too_little_memory_is_told_before_anything_is_cached(monkeypatch):
    monkeypatch.setattr("hasten.plugins.rettention.budget._free_bytes", lambda device: 1000)
    message = (
        r"statistics of 1 layers need 0.00 GB .* cpu has 0.00 GB left: set cache_budget='1MB' .* cache_dtype"
    )
    with pytest.raises(UnsupportedError, match=message) as caught:
        Bench(warmup=3).call(operands(), 0)
    assert "offload" not in str(caught.value)
    with pytest.raises(UnsupportedError) as caught:
        Bench(cache_dtype="float8").call(operands(), 0)
    assert "float8" not in str(caught.value)


def test_a_plan_makes_no_tables(monkeypatch):
    def refuse(self, *arguments):
        raise AssertionError("a table of every tile's keys, for a plan")

    monkeypatch.setattr("hasten.plugins.rettention.layout.SparseLayout.__init__", refuse)
    facts = (
        hasten.plan(FAMILIES["wan"](), {"rettention": OPTIONS}, **call_kwargs("wan"))
        .techniques[0]
        .forecast.facts
    )
    assert 0 < facts["true_density"] < 1


def test_too_little_memory_is_told_in_the_plan(monkeypatch):
    monkeypatch.setattr("hasten.plugins.rettention.budget._free_bytes", lambda device: 1000)
    plan = hasten.plan(FAMILIES["pixart-sigma"](), {"rettention": OPTIONS}, **call_kwargs("pixart-sigma"))
    assert "cpu has 0.00 GB left" in plan.techniques[0].forecast.facts["this_call_will_fail"]


# --- whole pipelines


def sparse_run(name: str, options: dict[str, Any], **changes: Any) -> Any:
    pipe = FAMILIES[name]()
    with hasten.accelerate(pipe, {"rettention": {**OPTIONS, **options}}) as acceleration:
        output = baseline(pipe, name, **changes)
        return output, [step.facts["rettention"] for step in acceleration.report().steps]


def test_two_runs_of_one_pipeline_are_alike_also_after_an_exception():
    pipe = FAMILIES["wan"]()

    def stop(pipe: Any, step: int, *_: Any) -> Any:
        if step == 1:
            raise RuntimeError("enough")
        return {}

    with hasten.accelerate(pipe, {"rettention": OPTIONS}):
        first = baseline(pipe, "wan")
        with pytest.raises(RuntimeError, match="enough"):
            baseline(pipe, "wan", callback_on_step_end=stop)
        assert torch.equal(baseline(pipe, "wan"), first)


def test_two_pipelines_that_share_a_model_do_not_share_statistics():
    import diffusers

    pipe = FAMILIES["flux"]()
    other = diffusers.FluxPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    plain = baseline(other, "flux")
    with hasten.accelerate(pipe, {"rettention": OPTIONS}):
        first = baseline(pipe, "flux")
        assert torch.equal(baseline(other, "flux"), plain)
        assert torch.equal(baseline(pipe, "flux"), first)


def test_a_budget_keeps_some_layers():
    _, facts = sparse_run("hunyuan-dit", {"cache_budget": 9000})
    assert facts[-1]["layers"] == {"sparse": 1, "dense": 3}
    assert 0 < max(fact.get("cache_bytes", 0) for fact in facts) <= 9000
    with pytest.raises(
        hasten.UnsupportedError, match="cache_budget=10 bytes is too small for the statistics of any layer"
    ):
        sparse_run("hunyuan-dit", {"cache_budget": 10})


def test_named_layers_only():
    _, facts = sparse_run("pixart-sigma", {"layers": ["*.1.attn1"]})
    assert facts[-1]["layers"] == {"sparse": 1}
    with pytest.raises(
        hasten.UnsupportedError, match=r"'\*.7.attn1' is not a self-attention layer of PixArtSigmaPipeline"
    ):
        sparse_run("pixart-sigma", {"layers": ["*.7.attn1"]})


def test_small_grids_stay_dense():
    _, facts = sparse_run("pixart-sigma", {"min_tokens": 256})
    assert facts[-1] == {"layers": {"dense": 2}, "density": 1.0}


def test_changing_prompt_lengths_between_runs():
    pipe = FAMILIES["flux"]()
    with hasten.accelerate(pipe, {"rettention": OPTIONS}):
        for length in (7, 3):
            embeds = call_kwargs("flux")["prompt_embeds"][:, :length]
            output = baseline(pipe, "flux", prompt_embeds=embeds)
            alone, _ = sparse_run("flux", {}, prompt_embeds=embeds)
            assert torch.equal(output, alone)


def test_reference_text_rows_may_be_ramped_as_in_the_released_code():
    plain, _ = sparse_run("cogvideox-rope", {}, num_inference_steps=4)
    parity, _ = sparse_run("cogvideox-rope", {"ramp_text": True}, num_inference_steps=4)
    assert not torch.equal(plain, parity)


@pytest.mark.parametrize("solver", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler"])
def test_solvers_of_second_order_are_planned_as_they_run(solver):
    import diffusers

    pipe = FAMILIES["pixart-sigma"]()
    pipe.scheduler = getattr(diffusers, solver)()
    options = {**OPTIONS, "warmup": 0.25}
    plan = hasten.plan(
        pipe, {"rettention": options}, **call_kwargs("pixart-sigma") | {"num_inference_steps": 8}
    )
    forecast = plan.techniques[0].forecast
    with hasten.accelerate(pipe, {"rettention": options}) as acceleration:
        baseline(pipe, "pixart-sigma", num_inference_steps=8)
        steps = acceleration.report().steps
    found: dict[int, str] = {}
    for step in steps:
        found.setdefault(step.index, next(iter(step.facts["rettention"]["layers"])))
    assert list(found.values()) == [step.note or "dense" for step in forecast.steps]
    assert len(steps) == 15
    assert forecast.steps[0].flops * 15 == forecast.baseline_flops * sum(s.index == 0 for s in steps)

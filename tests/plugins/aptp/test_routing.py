"""A routed batch is what its prompts are alone; nothing of the pipeline changes for good."""

import functools
import random

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

import hasten
from hasten._errors import ConfigError, ConflictError, UnsupportedError
from hasten._fingerprint import fingerprint
from hasten.extend import LatentSize
from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.prompt_groups import Group, group_prompts
from hasten.plugins.aptp.router import BASE, Decision, random_expert

from .conftest import PROMPTS, write_bundle

CALL = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent"}


@pytest.fixture
def options(bundle_folder):
    return {"bundle": str(bundle_folder)}


def seeds(n):
    return [torch.Generator().manual_seed(100 + i) for i in range(n)]


def experts_of(report):
    """Picture -> expert, from the report."""
    found = {}
    for step in report.steps:
        facts = step.facts.get("aptp")
        if facts and "pictures" in facts:
            found |= dict.fromkeys(facts["pictures"], facts["expert"])
    return found


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_mixed_batch_equals_its_prompts_alone(scenes_pipe, options, guidance, copies):
    call = {**CALL, "guidance_scale": guidance, "num_images_per_prompt": copies}
    with hasten.accelerate(scenes_pipe, {"aptp": options}) as accel:
        together = scenes_pipe(list(PROMPTS), generator=seeds(len(PROMPTS) * copies), **call).images
        chosen = experts_of(accel.report())
        assert len(set(chosen.values())) > 1
        for i, prompt in enumerate(PROMPTS):
            generator = seeds(len(PROMPTS) * copies)[i * copies : (i + 1) * copies]
            alone = scenes_pipe(prompt, generator=generator, **call).images
            assert torch.allclose(alone, together[i * copies : (i + 1) * copies], atol=1e-4), i
            assert set(experts_of(accel.report()).values()) == {chosen[i * copies]}


def test_one_generator_gives_the_noise_of_the_stock_call(scenes_pipe, options):
    """With experts that keep everything the routed batch is the stock batch."""
    call = {**CALL, "guidance_scale": 3.0}
    stock = scenes_pipe(list(PROMPTS), generator=torch.Generator().manual_seed(3), **call).images
    after_stock = torch.Generator().manual_seed(3)
    scenes_pipe(list(PROMPTS), generator=after_stock, **call)
    after_routed = torch.Generator().manual_seed(3)
    with hasten.accelerate(scenes_pipe, {"aptp": options}) as accel:
        routing = accel._attachment.table.run.items[0][1].__self__
        whole = dict.fromkeys(range(3), scenes_pipe.unet)
        routing._experts.get = lambda number, base: whole.get(number, base)
        routed = scenes_pipe(list(PROMPTS), generator=after_routed, **call).images
    assert torch.allclose(stock, routed, atol=1e-5)
    assert torch.equal(after_stock.get_state(), after_routed.get_state())


def test_order_and_batch_do_not_matter(scenes_pipe, options):
    with hasten.accelerate(scenes_pipe, {"aptp": options}) as accel:
        routing = accel._attachment.table.run.items[0][1].__self__
        decisions = {prompt: routing.decide(prompt) for prompt in PROMPTS}
        routing._decided.clear()
        shuffled = list(PROMPTS)
        random.Random(1).shuffle(shuffled)
        assert {prompt: routing.decide(prompt) for prompt in shuffled} == decisions


def test_negative_prompts_and_given_latents_go_with_their_prompts(scenes_pipe, options):
    latents = torch.randn(len(PROMPTS), 4, 16, 16, generator=torch.Generator().manual_seed(1))
    negative = [PROMPTS[-1 - i] for i in range(len(PROMPTS))]
    call = {**CALL, "guidance_scale": 3.0}
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        together = scenes_pipe(list(PROMPTS), negative_prompt=negative, latents=latents, **call).images
        for i, prompt in enumerate(PROMPTS):
            alone = scenes_pipe(
                prompt, negative_prompt=negative[i], latents=latents[i : i + 1], **call
            ).images
            assert torch.allclose(alone[0], together[i], atol=1e-4)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_every_kind_of_output_comes_back_in_order(scenes_pipe, options, kind):
    call = {**CALL, "output_type": kind, "guidance_scale": 1.0}
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        together = scenes_pipe(list(PROMPTS), generator=seeds(6), **call).images
        tuples = scenes_pipe(list(PROMPTS), generator=seeds(6), return_dict=False, **call)
        alone = scenes_pipe(PROMPTS[3], generator=seeds(6)[3], **call).images
    assert len(together) == len(PROMPTS) == len(tuples[0])
    as_tensor = lambda image: torch.as_tensor(__import__("numpy").asarray(image)).float()  # noqa: E731
    assert (as_tensor(alone[0]) - as_tensor(together[3])).abs().max() <= (1 if kind == "pil" else 1e-3)


def test_callbacks_learn_the_global_positions(scenes_pipe, options):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((step, kwargs["sample_indices"], len(kwargs["latents"])))
        return kwargs

    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        scenes_pipe(list(PROMPTS), callback_on_step_end=callback, **CALL, guidance_scale=1.0)
    assert sorted(i for step, indices, _ in seen if step == 0 for i in indices) == list(range(len(PROMPTS)))
    assert all(len(indices) == count for _, indices, count in seen)


def test_nothing_is_left_of_a_run(scenes_pipe, options):
    before, unet = fingerprint(scenes_pipe), scenes_pipe.unet
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        scenes_pipe(list(PROMPTS), **CALL)
        assert scenes_pipe.unet is unet

        def fail(*_):
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            scenes_pipe(list(PROMPTS), callback_on_step_end=fail, **CALL)
        assert scenes_pipe.unet is unet
        assert "prepare_latents" not in vars(scenes_pipe)
    assert not before.diff(fingerprint(scenes_pipe))


def test_what_the_user_put_on_the_pipeline_outlives_a_run(scenes_pipe, options, monkeypatch):
    original = scenes_pipe.prepare_latents

    @functools.wraps(original)
    def own(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setitem(vars(scenes_pipe), "prepare_latents", own)
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        scenes_pipe(list(PROMPTS), **CALL)
    assert vars(scenes_pipe)["prepare_latents"] is own


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("", "no text"),
        ("красный круг на белом фоне", "unfamiliar"),
        ("word " * 2000, "too long"),
        ("photograph of an astronaut riding a horse", "unfamiliar"),
    ],
    ids=["empty", "script", "long", "unknown"],
)
def test_prompts_the_router_never_learned_go_to_the_base(scenes_pipe, options, prompt, reason):
    stock = scenes_pipe(prompt, generator=seeds(1)[0], **CALL).images
    with hasten.accelerate(scenes_pipe, {"aptp": options}) as accel:
        routed = scenes_pipe(prompt, generator=seeds(1)[0], **CALL).images
        facts = accel.report().steps[0].facts["aptp"]
    assert (facts["expert"], facts["reason"]) == ("base", [reason])
    assert torch.equal(stock, routed)


def test_embeddings_without_text_run_on_the_base(scenes_pipe, options):
    embeds = torch.randn(1, 24, 96, generator=torch.Generator().manual_seed(1))
    call = {**CALL, "prompt_embeds": embeds, "guidance_scale": 1.0}
    stock = scenes_pipe(generator=seeds(1)[0], **call).images
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        assert torch.equal(scenes_pipe(generator=seeds(1)[0], **call).images, stock)


@pytest.mark.parametrize("residency", ["all", "lru", "slice_on_demand"])
def test_residency_changes_memory_and_not_pictures(scenes_pipe, options, residency):
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        expected = scenes_pipe(list(PROMPTS), generator=seeds(6), **CALL).images
    chosen = {**options, "residency": residency} | ({"resident": 1} if residency == "lru" else {})
    with hasten.accelerate(scenes_pipe, {"aptp": chosen}) as accel:
        experts = accel._attachment.table.run.items[0][1].__self__._experts
        assert torch.equal(scenes_pipe(list(PROMPTS), generator=seeds(6), **CALL).images, expected)
        assert len(experts.resident) == {"all": 3, "lru": 1, "slice_on_demand": 0}[residency]


def test_noise_in_every_step_needs_a_generator_for_each_picture(scenes_pipe, options):
    scheduler = scenes_pipe.scheduler
    try:
        scenes_pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(EulerDiscreteScheduler().config)
        with hasten.accelerate(scenes_pipe, {"aptp": options}):
            with pytest.raises(UnsupportedError, match="one for each picture"):
                scenes_pipe(list(PROMPTS), generator=seeds(1)[0], **CALL)
            together = scenes_pipe(list(PROMPTS), generator=seeds(6), **CALL).images
            alone = scenes_pipe(PROMPTS[2], generator=seeds(6)[2], **CALL).images
            assert torch.allclose(alone[0], together[2], rtol=1e-3, atol=1e-2)
    finally:
        scenes_pipe.scheduler = scheduler


def test_controls_route_at_random_or_not_at_all(scenes_pipe, options):
    with hasten.accelerate(scenes_pipe, {"aptp": {**options, "route": "static", "expert": 1}}) as accel:
        scenes_pipe(list(PROMPTS), **CALL)
        assert set(experts_of(accel.report()).values()) == {1}
    shares = torch.tensor([0.2, 0.5, 0.3])
    drawn = [random_expert(f"prompt {i}", shares) for i in range(2000)]
    counts = torch.tensor([drawn.count(k) / 2000 for k in range(3)])
    assert (counts - shares).abs().max() < 0.04
    assert drawn == [random_expert(f"prompt {i}", shares) for i in range(2000)]


def test_next_scale_generation_is_routed_with_a_generator_for_each_picture(tmp_path):
    pipe = hasten.load("mini/var")
    pipe.set_progress_bar_config(disable=True)
    size = LatentSize(*pipe.transformer.schedule[-1])
    options = {"bundle": str(write_bundle(pipe, tmp_path, size=size))}
    with hasten.accelerate(pipe, {"aptp": options}) as accel:
        together = pipe(list(PROMPTS), generator=seeds(6), output_type="latent").images
        assert len(set(experts_of(accel.report()).values())) > 1
        alone = [pipe(p, generator=g, output_type="latent").images[0] for p, g in zip(PROMPTS, seeds(6))]
        assert torch.allclose(torch.stack(alone), together, atol=1e-4)
        with pytest.raises(UnsupportedError, match="one for each picture"):
            pipe(list(PROMPTS), generator=seeds(1)[0])
    with pytest.raises(ConflictError, match=r"attention\.kv"):
        hasten.plan(pipe, {"aptp": options, "hack": {}})


def decided(*experts):
    return [Decision(expert, 1.0, "router") for expert in experts]


SHARES = {0: 0.4, 1: 0.6, 2: 0.9, BASE: 1.0}


def test_small_groups_move_up_and_never_down():
    config = AptpConfig(policy="coalesce", min_group=2, max_extra_cost=0.35)
    _groups, final = group_prompts(decided(0, 1, 1, 2, 2, 2), SHARES, config, ())
    assert [d.expert for d in final] == [1, 1, 1, 2, 2, 2]
    assert final[0].reason == "coalesced"
    alone, final = group_prompts(decided(0, 0, 2), SHARES, config, ())
    assert [d.expert for d in final] == [0, 0, 2]
    assert len(alone) == 2
    tight = AptpConfig(policy="coalesce", max_extra_cost=0.1)
    assert len(group_prompts(decided(0, 1, 1), SHARES, tight, ())[0]) == 2


def test_single_takes_the_costliest_and_resident_groups_run_first():
    groups, _ = group_prompts(decided(0, 2, 1), SHARES, AptpConfig(policy="single"), ())
    assert groups == [Group(2, (0, 1, 2))]
    groups, _ = group_prompts(decided(0, 0, 0, 1, 1, 2), SHARES, AptpConfig(), (2,))
    assert [g.expert for g in groups] == [2, 0, 1]


@pytest.mark.parametrize(
    "wrong",
    [{"route": "static"}, {"expert": 1}, {"policy": "best"}, {"max_extra_cost": 2}, {"residency": "some"}],
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ConfigError):
        hasten.Config.of({"aptp": wrong})

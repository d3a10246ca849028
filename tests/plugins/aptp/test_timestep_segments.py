"""Timestep segments: the expert changes within a run, and everything else is as without them."""

import json

import pytest
import torch

import hasten
from hasten._errors import CheckpointError, ConflictError
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.make.router_fit import segment_routes
from hasten.plugins.aptp.surgery import pruned
from hasten.plugins.aptp.timestep_segments import segment_of, segmented

from .conftest import PROMPTS, make_subject, write_bundle
from .test_routing import CALL, experts_of, seeds
from .test_surgery import some

ROUTES = ((0, 1), (2, 0))


@pytest.fixture
def options(scenes_pipe, tmp_path):
    return {"bundle": str(write_bundle(scenes_pipe, tmp_path, segments=(0.5,), routes=ROUTES))}


def test_segments_are_numbered_from_the_noisiest():
    assert [segment_of(time, (0.7, 0.3)) for time in (1.0, 0.7, 0.69, 0.3, 0.1)] == [0, 0, 1, 1, 2]
    assert segment_of(0.5, ()) == 0


def test_a_forward_is_computed_by_the_expert_of_its_segment():
    subject = make_subject("sd15")
    experts = [pruned(subject.denoiser, subject.structure, some(subject.structure, seed)) for seed in (1, 2)]
    model = segmented(experts, (0.5,), lambda kwargs: float(kwargs["timestep"].max()) / 1000)
    for time, expert in ((900, experts[0]), (100, experts[1])):
        inputs = {**subject.inputs(), "timestep": torch.tensor([time, time])}
        assert torch.equal(subject.run(model, inputs), subject.run(expert, inputs))
    assert type(model) is type(subject.denoiser)
    assert model.config == subject.denoiser.config


def test_a_batch_equals_its_prompts_alone_and_the_report_names_the_expert_of_every_step(scenes_pipe, options):
    call = {**CALL, "num_inference_steps": 4}
    with hasten.accelerate(scenes_pipe, {"aptp": options}) as accel:
        together = scenes_pipe(list(PROMPTS), generator=seeds(6), **call).images
        report = accel.report()
        assert set(experts_of(report).values()) == {0, 1}
        alone = [scenes_pipe(p, generator=g, **call).images[0] for p, g in zip(PROMPTS, seeds(6))]
    assert torch.allclose(torch.stack(alone), together, atol=1e-4)
    seen = {}
    for step in report.steps:
        facts = step.facts["aptp"]
        seen.setdefault(step.run, []).append((facts["segment"], facts["segment_expert"]))
    for steps in seen.values():
        route = next(route for route in ROUTES if route[0] == steps[0][1])
        assert steps == sorted(steps)
        assert {expert for _, expert in steps} == set(route)


@pytest.mark.parametrize("residency", ["lru", "slice_on_demand"])
def test_residency_changes_no_picture(scenes_pipe, options, residency):
    with hasten.accelerate(scenes_pipe, {"aptp": options}):
        expected = scenes_pipe(list(PROMPTS), generator=seeds(6), **CALL).images
    chosen = {**options, "residency": residency} | ({"resident": 1} if residency == "lru" else {})
    with hasten.accelerate(scenes_pipe, {"aptp": chosen}):
        assert torch.equal(scenes_pipe(list(PROMPTS), generator=seeds(6), **CALL).images, expected)


def test_techniques_that_remember_heads_are_refused(scenes_pipe, options):
    with pytest.raises(ConflictError, match=r"attention\.self"):
        hasten.plan(scenes_pipe, {"aptp": options, "rettention": {"min_tokens": 16}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segments": [0.3, 0.7]}, "must decrease"),
        ({"segments": []}, "need routes"),
        ({"routes": [{"experts": [0], "macs_share": 0.5, "traffic": 1}]}, "for each of 2 segments"),
        ({"routes": [{"experts": [0, 9], "macs_share": 0.5, "traffic": 1}]}, "one of 3 experts"),
    ],
)
def test_routes_that_make_no_sense_are_refused(options, fields, message):
    from pathlib import Path

    file = Path(options["bundle"]) / "aptp.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    with pytest.raises(CheckpointError, match=message):
        Bundle.load(options["bundle"])


def test_routes_take_large_experts_where_they_help_most():
    errors = torch.tensor([[0.9, 0.2], [0.1, 0.1]])  # the large expert helps in the noisy segment
    assert segment_routes(errors, torch.tensor([0.4, 0.9])) == [(0, 0), (1, 0), (1, 1)]

"""Making bundles: budgets are met, runs resume to the bit, bad data is named, the result works."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hasten
from hasten._errors import CheckpointError, ConfigError
from hasten._target import Target
from hasten.extend import LatentSize
from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.encoder import PipelineEncoder
from hasten.plugins.aptp.make.conditioner import Conditioner
from hasten.plugins.aptp.make.context import TrainingContext, relative_error
from hasten.plugins.aptp.make.data import captioned_pictures, prepare, scene_pictures
from hasten.plugins.aptp.make.evaluate import configurations
from hasten.plugins.aptp.make.export import export
from hasten.plugins.aptp.make.oneshot import collect, cut_once, repaired, scores_of
from hasten.plugins.aptp.make.options import ExportOptions, OneShotOptions, SearchOptions, TuneOptions
from hasten.plugins.aptp.make.router_fit import fit_router
from hasten.plugins.aptp.make.search import Searched, search
from hasten.plugins.aptp.make.tune import Tuned, Tuner, applied, tune
from hasten.plugins.aptp.manifest import GrainEntry
from hasten.plugins.aptp.surgery import pruned

from .subjects import tiny_flux, tiny_unet


def prepared(pipe, folder, count=24, pixels=32):
    target = Target.of(pipe)
    factor = pipe.vae_scale_factor
    conditioner = Conditioner.of(target, LatentSize(pixels // factor, pixels // factor))
    about = {"model": "test", "router_encoder": "pipeline", "router_model": "text_encoder"}
    encoder = PipelineEncoder(pipe, "text_encoder")
    return prepare(conditioner, encoder, scene_pictures(count, pixels), folder, about)


def make_study(kind, factory):
    pipe = {"unet": tiny_unet, "flux": tiny_flux}[kind]()
    return TrainingContext.of(pipe, prepared(pipe, factory.mktemp(kind)), GrainEntry(ffn=8, align=1))


@pytest.fixture(scope="module", params=["unet", "flux"])
def study(request, tmp_path_factory):
    return make_study(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def unet_study(tmp_path_factory):
    return make_study("unet", tmp_path_factory)


OPTIONS = SearchOptions(budgets=(0.5, 0.7, 0.9), steps=20, batch=4, importance_batches=1)


def test_conditions_are_those_of_the_pipeline(study):
    """At one level a forward built from stored conditions is a forward of the pipeline."""
    batch = study.data.rows(torch.arange(4))
    noisy = study.noisy(batch, torch.Generator().manual_seed(0))
    out = study.predict(study.denoiser, noisy)
    assert out.shape == batch.latents.shape == noisy.truth.shape
    fresh = study.conditioner.conditions(study.data.captions[:4])
    for name, value in fresh.items():
        assert torch.allclose(value.float(), batch.conditions[name], atol=2e-2), name


def test_soft_costs_equal_the_cost_model_on_plans(study):
    space = study.gates
    plans = [space.plan(torch.randn(space.size), budget) for budget in (0.6, 0.8, 1.0)]
    gates = torch.stack([space.of(plan) for plan in plans])
    expected = torch.tensor([study.costs.ratio(plan) for plan in plans])
    assert torch.allclose(space.budget.soft_ratio(*space.split(gates)), expected, atol=1e-5)


def test_a_plan_uses_its_budget_and_an_impossible_one_is_refused(study):
    scores = torch.randn(study.gates.size, generator=torch.Generator().manual_seed(1))
    for budget in (0.5, 0.75, 0.95):
        ratio = study.costs.ratio(study.gates.plan(scores, budget))
        assert budget - 0.04 < ratio <= budget
    with pytest.raises(ConfigError, match="no plan reaches"):
        study.gates.plan(scores, 1e-4)


@pytest.mark.parametrize("preset", ["improved", "paper"])
def test_a_search_meets_its_budget(study, tmp_path, preset):
    from dataclasses import replace

    found = search(study, replace(OPTIONS, preset=preset), tmp_path)
    assert len(found.plans) == 3
    for share, budget in zip(found.shares, OPTIONS.budgets):
        assert budget - 0.04 < share <= budget
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert len(curve) == OPTIONS.steps
    if preset == "improved":
        assert curve[-1]["budget"] < 0.1


def test_an_interrupted_search_ends_in_the_same_bits(unet_study, tmp_path):
    study = unet_study
    whole = search(study, OPTIONS, tmp_path / "whole")
    for stop in (7, 13, None):
        parts = search(study, OPTIONS, tmp_path / "parts", stop_after=stop)
    assert whole == parts == Searched.load(tmp_path / "parts")
    states = [load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(CheckpointError, match="another run"):
        search(study, SearchOptions(budgets=(0.5,), steps=20, batch=4), tmp_path / "parts")


def experts(study, folder, steps=16, **options):
    plans = tuple(study.gates.plan(torch.linspace(1, 0, study.gates.size), b) for b in (0.6, 0.9))
    searched = Searched(plans, tuple(study.costs.ratio(plan) for plan in plans))
    chosen = TuneOptions(steps=steps, batch=4, rate=5e-3, **options)
    return searched, chosen, tune(study, searched, chosen, folder)


@pytest.mark.parametrize("weights", ["lora", "shared", "full"])
def test_tuning_brings_experts_closer_to_the_base_and_resumes(unet_study, tmp_path, weights):
    study = unet_study
    searched, options, tuned = experts(study, tmp_path / "whole", weights=weights)
    curve = [json.loads(line) for line in (tmp_path / "whole" / "curve.jsonl").read_text().splitlines()]
    errors = [point["error"] for point in curve if point["expert"] == 0]
    assert sum(errors[-4:]) < sum(errors[:4])
    for stop in (11, None):
        parts = tune(study, searched, options, tmp_path / "parts", stop_after=stop)
    for first, second in zip(tuned.tensors, parts.tensors):
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert Tuned.load(tmp_path / "parts").weights == weights


@pytest.mark.parametrize("weights", ["lora", "shared", "full"])
def test_an_exported_bundle_works_on_its_pipeline(unet_study, tmp_path, weights):
    study = unet_study
    searched, _, tuned = experts(study, tmp_path, steps=4, weights=weights)
    manifest = export(study, searched, tuned, ExportOptions(prompts=16, draws=1), tmp_path / "bundle", {})
    assert sum(e.traffic for e in manifest.experts) == pytest.approx(1)
    pipe = study.conditioner.target.pipe
    with hasten.accelerate(pipe, {"aptp": {"bundle": str(tmp_path / "bundle")}}) as accel:
        call = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "latent"}
        images = pipe(list(study.data.captions[:3]), **call).images
        assert len(images) == 3
        assert all("aptp" in step.facts for step in accel.report().steps if step.index == 0)
    names = configurations(Bundle.load(tmp_path / "bundle"))
    assert list(names) == ["aptp", "static expert", "random routing"]


def test_a_bundle_with_timestep_segments_is_exported_and_used(unet_study, tmp_path):
    searched, _, tuned = experts(unet_study, tmp_path, steps=4)
    options = ExportOptions(prompts=16, draws=1, segments=2)
    manifest = export(unet_study, searched, tuned, options, tmp_path / "bundle", {})
    assert len(manifest.segments) == 1
    assert sum(route.traffic for route in manifest.routes) == pytest.approx(1)
    assert sum(expert.traffic for expert in manifest.experts) == pytest.approx(1)
    pipe = unet_study.conditioner.target.pipe
    with hasten.accelerate(pipe, {"aptp": {"bundle": str(tmp_path / "bundle")}}) as accel:
        call = {"num_inference_steps": 4, "height": 32, "width": 32, "output_type": "latent"}
        pipe(list(unet_study.data.captions[:2]), **call)
        assert {step.facts["aptp"]["segment"] for step in accel.report().steps} == {0, 1}


def test_nested_experts_with_shared_weights_are_what_was_trained_and_share_memory(unet_study, tmp_path):
    study = unet_study
    options = SearchOptions(budgets=(0.5, 0.7, 0.9), steps=2, batch=4, importance_batches=1, nested=True)
    searched = search(study, options, tmp_path / "search")
    tuning = TuneOptions(weights="shared", steps=4, batch=4)
    tuned = tune(study, searched, tuning, tmp_path / "tune")
    export(study, searched, tuned, ExportOptions(prompts=16, draws=1), tmp_path / "bundle", {})
    bundle, base = Bundle.load(tmp_path / "bundle"), study.denoiser
    tuner = Tuner(study, searched, tuning)
    tuner.load(tuned)
    noisy = study.noisy(study.data.rows(torch.arange(4)), torch.Generator().manual_seed(0))
    source = bundle.source(base, study.structure, 0)
    assert torch.allclose(source(**noisy.arguments)[0], whole_with(base, tuned, noisy), atol=2e-3)
    storages = {p.untyped_storage().data_ptr() for p in source.parameters()}
    for number in range(3):
        model = bundle.build(source, study.structure, number)
        expected = tuner.predict(number, noisy)
        assert torch.allclose(study.predict(model, noisy), expected, atol=2e-3)  # stored in half precision
        # The two halves of a gated projection are not one prefix: it is a copy.
        matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "net.0.proj" not in n]
        assert all(p.untyped_storage().data_ptr() in storages for p in matrices)


def whole_with(base, tuned, noisy):
    """The base's prediction with the shared update."""
    weights = applied(base, tuned.tensors[0])
    return torch.func.functional_call(base, weights, (), dict(noisy.arguments))[0]


def test_hard_prompts_go_to_large_experts_at_the_wanted_mean_cost():
    noise = torch.Generator().manual_seed(0)
    embeddings = torch.randn(400, 12, generator=noise)
    difficulty = torch.sigmoid(3 * embeddings[:, 0])
    shares = torch.tensor([0.4, 0.6, 0.9])
    errors = difficulty[:, None] * (1 - shares)
    fitted = fit_router(embeddings, errors, shares, 0.6)
    chosen = torch.stack([fitted.router.probabilities(e) for e in embeddings]).argmax(1)
    cost = shares[chosen]
    assert fitted.mean_share == pytest.approx(0.6, abs=0.06)
    assert float(cost[difficulty > 0.8].mean()) > float(cost[difficulty < 0.2].mean()) + 0.2
    with pytest.raises(ConfigError, match="--mean-cost"):
        fit_router(embeddings, errors, shares, 0.3)


def test_one_shot_repair_beats_plain_slicing(study):
    hessians = collect(study, torch.arange(16), 0)
    plan = study.gates.plan(scores_of(study, hessians, 0.01), 0.85)
    assert not plan.dropped
    plain = pruned(study.denoiser, study.structure, plan)
    from hasten.plugins.aptp.lora import merge_update

    fixed = pruned(study.denoiser, study.structure, plan)
    merge_update(fixed, repaired(study, hessians, plan, 0.01), "test")
    errors = []
    for model in (plain, fixed):
        with torch.no_grad():
            noisy = study.noisy(study.data.rows(torch.arange(16, 24)), torch.Generator().manual_seed(9))
            teacher = study.predict(study.denoiser, noisy)
            errors.append(float(relative_error(study.predict(model, noisy), teacher).mean()))
    assert errors[1] < errors[0]


def test_a_cut_without_training_is_a_bundle(study, tmp_path):
    options = OneShotOptions(budgets=(0.8, 0.9), prompts=16, clusters=2)
    manifest = cut_once(study, options, tmp_path, {})
    bundle = Bundle.load(tmp_path)
    assert len(bundle.experts) in (2, 4)
    assert manifest.about["merged_clusters"] == (4 - len(bundle.experts)) // 2
    for number in range(len(bundle.experts)):
        assert bundle.build(study.denoiser, study.structure, number) is not None


def picture(folder, name):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (40, 30), (200, 10, 10)).save(folder / name)


def test_data_folders_need_a_caption_for_every_picture(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        list(captioned_pictures(tmp_path / "none", 32, 32))
    with pytest.raises(ConfigError, match="no pictures"):
        list(captioned_pictures(tmp_path, 32, 32))
    picture(tmp_path / "data", "a.png")
    picture(tmp_path / "data", "b.png")
    (tmp_path / "data" / "a.txt").write_text("a red field")
    with pytest.raises(ConfigError, match=r"1 of 2 pictures have no caption, first b.png"):
        list(captioned_pictures(tmp_path / "data", 32, 32))
    (tmp_path / "data" / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "another"}\n')
    found = list(captioned_pictures(tmp_path / "data", 32, 24))
    assert [caption for caption, _ in found] == ["a red field", "another"]
    assert found[0][1].shape == (3, 32, 24)
    (tmp_path / "data" / "metadata.jsonl").write_text("oops\n")
    with pytest.raises(ConfigError, match=r"metadata.jsonl:1"):
        list(captioned_pictures(tmp_path / "data", 32, 32))


def test_pictures_of_training_data_are_upright_and_of_any_format(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (40, 20))
    stored.paste((255, 255, 255), (0, 0, 20, 20))
    stored.save(tmp_path / "a.tif", exif=exif)
    (tmp_path / "a.txt").write_text("white above black")
    ((_, pixels),) = captioned_pictures(tmp_path, 40, 20)
    assert pixels[:, :18].min() == 1
    assert pixels[:, 22:].max() == -1


@pytest.mark.parametrize("budgets", [(), (0.0, 0.5), (0.9, 0.5), (1.2,)])
def test_wrong_budgets_are_refused(budgets):
    with pytest.raises(ConfigError, match="--budgets"):
        SearchOptions(budgets=budgets)


def test_stages_that_were_not_run_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="hasten aptp search"):
        Searched.load(tmp_path)
    with pytest.raises(CheckpointError, match="hasten aptp tune"):
        Tuned.load(tmp_path)

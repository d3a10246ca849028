"""HACK through the front door, on a small VARPipeline."""

import json

import pytest
import torch
from families import FAMILIES

import hasten
from hasten._errors import CheckpointError, ConfigError, ConflictError, UnsupportedError
from hasten.plugins.hack.calibration import calibrate, fingerprint, read_artefact


def picture(pipe, **options):
    call = {"class_labels": [1, 2], "output_type": "latent", "guidance_scale": 1.5}
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipe(**{**call, "generator": generators, **options}).images


@pytest.fixture
def file(pipe, tmp_path):
    path = tmp_path / "calibration.json"
    calibrate(pipe, {"class_labels": [0, 1, 2]}).write(path)
    return str(path)


def test_ratio_zero_attaches_nothing_and_changes_no_bit(pipe):
    expected = picture(pipe)
    with hasten.accelerate(pipe, {"hack": {"ratio": 0.0}}) as accel:
        assert accel.plan.patches == ()
        assert torch.equal(picture(pipe), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy": "hack_plus", "ratio": 0.5, "cache_ratio": 0.8},
        {"policy": "scale_static"},
        {"policy": "local_scales", "local_window": 1},
        {"policy": "streaming"},
        {"policy": "snapkv"},
        {"policy": "h2o"},
        {"budgets": "uniform"},
        {"kv_bits": 8},
        {"merge": "last"},
        {"unguided_last_scales": 2},
    ],
    ids=str,
)
def test_every_policy_runs_reports_and_leaves_the_pipeline_as_it_was(pipe, file, options):
    expected = picture(pipe)
    with hasten.accelerate(pipe, {"hack": {"calibration": file, **options}}) as accel:
        made = picture(pipe)
        report = accel.report()
        str(report)
    assert bool(torch.isfinite(made).all())
    assert torch.equal(picture(pipe), expected)
    facts = [step.facts["hack"] for step in report.steps]
    assert len(facts) == 5
    assert [step.size for step in report.steps] == [(s, s) for s in (1, 2, 3, 4, 6)]
    assert max(f["peak_bytes"] for f in facts) > 0
    assert all(len(tokens) <= 3 * 4 for f in facts for tokens in f["tokens"].values())
    json.loads(report.to_json())


def test_calibrating_on_the_fly_equals_a_file_and_leaves_the_generators_alone(pipe, tmp_path):
    with hasten.accelerate(pipe, {"hack": {"ratio": 0.7}}) as accel:
        first, again = picture(pipe), picture(pipe)
        assert len(accel.report().steps) == 5  # the second call does not calibrate again
    assert torch.equal(first, again)


def test_other_seeds_do_not_change_the_labels_much(pipe):
    few = calibrate(pipe, {"class_labels": [0]}, seed=5)
    many = calibrate(pipe, {"class_labels": [0, 1, 2, 3, 4]})
    assert few.statistics.sigma.shape == (3, 4)
    assert float(((few.statistics.ratio < 0.5) == (many.statistics.ratio < 0.5)).float().mean()) >= 0.75


def test_permuted_weights_give_the_same_pictures_and_are_put_back(pipe, file):
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    with hasten.accelerate(pipe, {"hack": {"calibration": file, "alpha": 0.5}}):
        indexed = picture(pipe)
    with hasten.accelerate(pipe, {"hack": {"calibration": file, "alpha": 0.5, "grouping": "permute"}}):
        assert not all(torch.equal(before[n], v) for n, v in pipe.transformer.state_dict().items())
        permuted = picture(pipe)
    assert torch.allclose(indexed, permuted, atol=1e-4)
    assert all(torch.equal(before[n], v) for n, v in pipe.transformer.state_dict().items())


def test_an_error_in_the_loop_frees_the_cache(pipe, file):
    caches = []

    def fail(given, end):
        caches.append(end)
        raise RuntimeError("stop")

    with hasten.accelerate(pipe, {"hack": {"calibration": file}}) as accel:
        with pytest.raises(RuntimeError, match="stop"):
            picture(pipe, callback_on_scale_end=fail)
        assert accel.report().error == "RuntimeError: stop"
        assert bool(torch.isfinite(picture(pipe)).all())


def test_a_calibration_of_another_model_or_dtype_or_a_damaged_one_is_refused(pipe, file, tmp_path):
    artefact = read_artefact(file)
    assert artefact.model == fingerprint(pipe)
    pipe.to(dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="another model"):
        hasten.accelerate(pipe, {"hack": {"calibration": file}})
    (tmp_path / "bad.json").write_text('{"schema": 1}')
    with pytest.raises(CheckpointError, match="not a file of `hasten calibrate`"):
        hasten.plan(pipe, {"hack": {"calibration": str(tmp_path / "bad.json")}})
    with pytest.raises(CheckpointError, match="cannot be read"):
        hasten.plan(pipe, {"hack": {"calibration": str(tmp_path / "none.json")}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.95}, "at least 8"),
        ({"budget_tokens": 4}, "budget_tokens"),
        ({"policy": "hak"}, "policy"),
        ({"cache_ratio": 0.9}, "hack_plus"),
        ({"policy": "hack_plus", "ratio": 0.8, "cache_ratio": 0.5}, "keeps more"),
        ({"policy": "streaming", "merge": "last"}, "merge"),
        ({"raito": 0.5}, "ratio"),
    ],
    ids=str,
)
def test_bad_options_are_named(pipe, options, words):
    with pytest.raises(ConfigError, match=words):
        hasten.plan(pipe, {"hack": options})


def test_permuting_needs_a_calibration_file(pipe):
    with pytest.raises(UnsupportedError, match="hasten calibrate"):
        hasten.plan(pipe, {"hack": {"grouping": "permute"}})


def test_a_diffusion_pipeline_refuses_hack_and_var_refuses_bottleneck(pipe):
    with pytest.raises(UnsupportedError, match="does not generate scale by scale"):
        hasten.plan(FAMILIES["flux"](), {"hack": {}})
    with pytest.raises(UnsupportedError, match="does not denoise one latent step by step"):
        hasten.plan(pipe, {"bottleneck": {}})
    with pytest.raises((ConflictError, ConfigError)):
        hasten.plan(pipe, ["hack", "hack"])


def test_the_plan_says_how_many_tokens_are_kept(pipe, file):
    text = str(hasten.plan(pipe, {"hack": {"calibration": file}}))
    assert "19 of 66 tokens" in text
    assert "exclusive attention.kv" in text

"""What a pipeline will not take is said in one line, with exit code 2, before its weights are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, call_kwargs, seeded
from typer.testing import Result

import hasten as package
from hasten import ConfigError
from hasten._cli import _loading
from hasten._cli._mistakes import explain
from hasten._cli._preflight import check_before_loading

from .conftest import PROMPT

Run = Callable[..., Result]
ODD = ("--height", 100, "--width", 100)
MODEL = "mini/t2i-dit"
BEYOND = "choose one from 0 to 9223372036854775807"


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "load", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", MODEL, "-p", PROMPT, *ODD), "height and width must be multiples of 8: use 96"),
        (("generate", MODEL, "-p", PROMPT, "--height", 100), "multiples of 8: use height 96"),
        (("generate", MODEL, "-p", PROMPT, "--height", 3), "multiples of 8: use height 8"),
        (("generate", MODEL, "-p", PROMPT, "--width", 4096), "positions for 256x256 pixels (height x width)"),
        (("generate", MODEL, "-p", PROMPT, "--seed", 2**64), BEYOND),
        (("generate", MODEL, "-p", PROMPT, "--seed", 2**63), BEYOND),
        (("generate", MODEL, "-p", PROMPT, "--seed", -1), BEYOND),
        (("generate", MODEL, "-p", PROMPT, "--dtype", "int8"), "one of float32, bfloat16, float16"),
        (("generate", MODEL, "-p", PROMPT, "--dtype", "bfloat"), "did you mean 'bfloat16'"),
        (("generate", MODEL, "-p", PROMPT, "--device", "gpu"), "write cpu, cuda, cuda:1 or mps"),
        (("generate", MODEL, "-p", PROMPT, "--guidance-scale", "nan"), "not a finite number"),
        (("generate", MODEL, "-p", PROMPT, "--frames", 5), "remove `frames`"),
        (("generate", "mini/t2i-unet", "-p", PROMPT, *ODD), "multiples of 8: use 96"),
        (("generate", "mini/var", "-p", PROMPT, *ODD), "pictures of 64x64 pixels only"),
        (("generate", "mini/infinity", "-p", PROMPT, *ODD), "pictures of 64x64 pixels only"),
        (("plan", MODEL, "-e", "bottleneck", *ODD), "multiples of 8: use 96"),
        (("plan", MODEL, "-e", "bottleneck", "--width", 4096), "positions for 256x256"),
        (("compare", MODEL, "-e", "bottleneck", "--num-prompts", 2, *ODD), "multiples of 8: use 96"),
        (("compare", MODEL, "-e", "bottleneck", "--num-prompts", 2, "--seed", 2**63), BEYOND),
        (("demo", "--seed", -4), BEYOND),
        (("demo", "--dtype", "int8"), "one of float32, bfloat16, float16"),
        (("video", "mini/t2v-dit", "-p", PROMPT, "--height", 66, "--width", 66), "multiples of 16: use 64"),
        (("video", "mini/t2v-dit", "-p", PROMPT, "--seed", 2**64), BEYOND),
        (("video", "mini/t2v-dit", "-p", PROMPT, "--dtype", "int8"), "one of float32"),
        (("calibrate", "mini/var", *ODD), "pictures of 64x64 pixels only"),
        (("calibrate", "mini/var", "--seed", 2**64), BEYOND),
        (("kv", "var-d16", "--dtype", "int8"), "one of float32"),
    ],
)
def test_what_can_be_known_is_refused_before_anything_is_loaded(
    hasten: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = hasten(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("line", "message"), [("seed: 9223372036854775808", "seed"), ("dtype: int8", "dtype")]
)
def test_a_file_is_held_to_the_same(hasten: Run, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(f"schema: 1\nmodel: {MODEL}\n{line}\n")
    result = hasten("generate", "-c", tmp_path / "run.yaml", "-p", PROMPT, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_what_only_the_run_can_know_is_one_line_too(
    hasten: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loading, "check_before_loading", lambda *_: None)
    for size, text in ((ODD, "multiples of 8"), (("--width", 4096), "Width (512) cannot be greater")):
        result = hasten("generate", folder, "-p", PROMPT, "--steps", 2, "--out", tmp_path / text, *size)
        assert result.exit_code == 2, result.output
        assert text in result.stderr.splitlines()[-1]
        assert isinstance(result.exception, SystemExit)


@pytest.mark.parametrize("enable", [[], ["bottleneck"]])
def test_in_python_the_error_is_the_pipelines_own(enable: list[str], folder: Path) -> None:
    pipe = package.load(folder)
    with package.accelerate(pipe, enable), pytest.raises(ValueError, match="divisible by 8") as caught:
        pipe(PROMPT, height=100, width=100, num_inference_steps=2)
    assert not isinstance(caught.value, package.HastenError)


@pytest.mark.parametrize(("module", "refused"), [("diffusers.models.x", True), ("hasten.plugins.x", False)])
def test_a_fault_of_a_technique_is_no_refusal(module: str, refused: bool) -> None:
    """It keeps its traceback: the user can do nothing about it."""
    scope: dict[str, Any] = {"__name__": module}
    exec("def fail(*_, **__):\n    raise ValueError('something is wrong')", scope)
    pipe = FAMILIES["sd3"]()
    pipe.transformer.forward = scope["fail"]
    with pytest.raises(ValueError, match="something is wrong") as caught:
        pipe(**seeded("sd3"))
    expected = "StableDiffusion3Pipeline refuses this call: something is wrong"
    assert explain(caught.value) == (expected if refused else None)


def test_an_error_from_elsewhere_is_no_refusal() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    assert explain(caught.value) is None


@pytest.mark.parametrize(
    "name", ["sd3", "wan", "ltx", "z-image", "aura-flow", "hunyuan-dit", "qwen-image", "sdxl"]
)
def test_nothing_is_refused_that_the_pipeline_would_take(name: str, tmp_path: Path) -> None:
    """Some pipelines round a size by themselves; what they do decides, not a rule of ours."""
    pipe = FAMILIES[name]()
    pipe.save_pretrained(tmp_path)
    legal = {
        key: call_kwargs(name)[key] for key in ("height", "width", "num_frames") if key in call_kwargs(name)
    }
    check_before_loading(str(tmp_path), legal)
    odd = {**legal, "height": 101, "width": 67}
    try:
        pipe(**{**seeded(name), **odd})
    except ValueError:
        with pytest.raises(ConfigError, match="must be multiples of"):
            check_before_loading(str(tmp_path), odd)
    else:
        check_before_loading(str(tmp_path), odd)


@pytest.mark.parametrize("name", ["sd3", "aura-flow"])
def test_the_largest_size_is_the_one_the_model_can_do(name: str, tmp_path: Path) -> None:
    pipe = FAMILIES[name]()
    pipe.save_pretrained(tmp_path)
    config = pipe.transformer.config
    cells = config.pos_embed_max_size if name == "sd3" else int(config.pos_embed_max_size**0.5)
    side = cells * config.patch_size * pipe.vae_scale_factor
    step = config.patch_size * pipe.vae_scale_factor
    fits, beyond = ({**call_kwargs(name), "height": value, "width": step} for value in (side, side + step))
    assert pipe(**fits) is not None
    check_before_loading(str(tmp_path), {"height": side, "width": step})
    with pytest.raises((ValueError, IndexError)):
        pipe(**beyond)
    with pytest.raises(ConfigError, match=f"positions for {side}x{side} pixels"):
        check_before_loading(str(tmp_path), {"height": side + step, "width": step})

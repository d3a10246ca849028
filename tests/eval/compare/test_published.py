"""CLIP, BLIP-2, BLIP, CMMD and Frechet figures of a comparison, from networks in folders as a user has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from hasten._cli import build_app
from hasten.pipelines import mini


@pytest.fixture
def networks(
    clip_model: Any,
    clip_tokenizer: Any,
    blip2_model: Any,
    blip_model: Any,
    word_tokenizer: Any,
    tmp_path: Path,
) -> Callable[[str], Path]:
    """Folder of a tiny network in the layout of the published checkpoint."""
    models = {"clip": (clip_model, clip_tokenizer), "blip2": (blip2_model, word_tokenizer)}
    models["blip"] = (blip_model, word_tokenizer)

    def folder(name: str) -> Path:
        model, tokenizer = models[name]
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        fields = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        (tmp_path / name / "preprocessor_config.json").write_text(json.dumps(fields))
        return tmp_path / name

    return folder


def test_every_published_metric_scores_a_comparison(
    folder: Path, networks: Callable[[str], Path], tmp_path: Path
) -> None:
    clip, blip2, blip = (networks(name) for name in ("clip", "blip2", "blip"))
    prompts, real = tmp_path / "prompts.txt", tmp_path / "real"
    prompts.write_text("\n".join(mini.prompts(3)))
    real.mkdir()
    for number, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 32), colour).save(real / f"{number}.png")
    chosen = {
        "clip_score": clip,
        "clip_i": clip,
        "cmmd": clip,
        "blip2_t": blip2,
        "blip2_itm": blip2,
        "blip_t_classdiffusion": blip,
        "blip_itm": blip,
    }
    words = ["compare", folder, "--prompts", prompts, "-e", "bottleneck", "-s", "bottleneck.low_until=0.5"]
    words += ["--steps", 3, "--height", 32, "--width", 32, "--fewer-steps", 2, "--reference", real]
    words += ["--out", tmp_path / "out", "--json", "-m", ",".join(chosen)]
    for name, network in chosen.items():
        words += ["--metric-option", f"{name}.network={network}"]
    result = CliRunner().invoke(build_app(), [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    for name in chosen:
        figure = report["figures"]["accelerated"][name]
        assert figure["value"]["low"] <= figure["value"]["value"] <= figure["value"]["high"], name
        made = report["metrics"][name]["fingerprint"]
        assert made["weights"], name
    assert report["metrics"]["blip2_t"]["fingerprint"] != report["metrics"]["blip2_itm"]["fingerprint"]
    assert report["figures"]["repeat"]["clip_i"]["value"]["value"] == pytest.approx(1, abs=1e-6)

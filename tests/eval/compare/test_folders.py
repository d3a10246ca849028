"""``hasten eval``: pictures of any tool, and everything that can be wrong with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from captioned import prompts_file, true_pictures
from PIL import Image
from typer.testing import Result

Evaluate = Callable[..., Result]


def noisy_copy(source: Path, target: Path) -> Path:
    target.mkdir()
    rng = np.random.default_rng(0)
    for path in sorted(source.glob("*.png")):
        pixels = np.asarray(Image.open(path)).astype(int)
        noise = rng.integers(-16, 17, pixels.shape)
        Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8)).save(target / path.name)
    return target


def test_figures_agree_with_a_direct_computation(evaluate: Evaluate, tmp_path: Path) -> None:
    base = true_pictures(tmp_path / "base", 6)
    fast = noisy_copy(base, tmp_path / "fast")
    prompts = prompts_file(tmp_path / "prompts.txt", 6)
    options = ("--generated", fast, "--baseline", base, "--prompts", prompts)
    result = evaluate(*options, "--metrics", "psnr,mini_parser", "--json", "--batch-size", 4)
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    decibels = []
    for path in sorted(base.glob("*.png")):
        a, b = (np.asarray(Image.open(folder / path.name)).astype(float) for folder in (base, fast))
        decibels.append(10 * np.log10(255**2 / ((a - b) ** 2).mean()))
    assert metrics["psnr"]["value"] == pytest.approx(np.mean(decibels), rel=1e-9)
    assert metrics["mini_parser"]["value"] == pytest.approx(1.0)
    assert metrics["psnr"]["fingerprint"]["metric"] == "psnr"


def test_bad_pictures_are_counted_and_left_out_with_their_partners(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    base = true_pictures(tmp_path / "base", 6)
    fast = noisy_copy(base, tmp_path / "fast")
    (fast / "00001.png").write_bytes((fast / "00001.png").read_bytes()[:200])
    (base / "00004.png").write_text("no picture")
    options = ("--generated", fast, "--baseline", base, "--metrics", "psnr")
    refused = evaluate(*options)
    assert refused.exit_code == 2
    assert "1 of 6 images" in refused.stderr
    result = evaluate(*options, "--skip-bad", "--json")
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert scored["pictures"] == 4
    assert sorted(key.rsplit(" ")[-1] for key in scored["bad"]) == ["00001", "00004"]


def test_mixed_sizes_grey_and_opaque_rgba_are_scored_together(evaluate: Evaluate, tmp_path: Path) -> None:
    folder = true_pictures(tmp_path / "mixed", 4)
    Image.open(folder / "00001.png").resize((80, 80)).save(folder / "00001.png")
    Image.open(folder / "00002.png").convert("RGBA").save(folder / "00002.png")
    Image.open(folder / "00003.png").convert("L").save(folder / "00003.png")
    prompts = prompts_file(tmp_path / "prompts.txt", 4)
    result = evaluate("--generated", folder, "--prompts", prompts, "--metrics", "mini_parser", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["pictures"] == 4


def test_what_is_missing_or_wrong_is_named(evaluate: Evaluate, tmp_path: Path) -> None:
    base = true_pictures(tmp_path / "base", 4)
    fewer = true_pictures(tmp_path / "fewer", 3)
    (tmp_path / "empty").mkdir()
    short = prompts_file(tmp_path / "short.txt", 3)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--generated", base), "--metrics"),
        (("--generated", tmp_path / "empty", "-m", "psnr"), "holds no images"),
        (("--generated", base, "--baseline", fewer, "-m", "psnr"), "pairs are needed"),
        (("--generated", base, "--prompts", short, "-m", "mini_parser"), "3 prompts"),
        (("--generated", base, "-m", "mini_parser"), "needs --prompts"),
        (("--generated", base, "-m", "psnr"), "needs --baseline"),
        (("--generated", base, "-m", "pnsr"), "did you mean 'psnr'"),
        (("--generated", base, "-m", "clip"), "clip_score.network="),
        (("--generated", base, "-m", "fid", "--reference", base), "Inception weights"),
        (("--generated", base, "-m", "psnr", "--metric-option", "psnr.chanel=y"), "chanel"),
    ]
    for arguments, message in cases:
        result = evaluate(*arguments)
        assert result.exit_code == 2, arguments
        assert message in result.stderr.replace("\n", " "), (message, result.stderr)


def test_statistics_of_another_fingerprint_are_refused(evaluate: Evaluate, tmp_path: Path) -> None:
    import torch

    from hasten.eval.fingerprint import Fingerprint
    from hasten.eval.functional.moments import Moments
    from hasten.eval.scoring.moments_file import Statistics, save_statistics
    from hasten_miniatures.contrastive import build_clip, export_clip

    export_clip(build_clip(), tmp_path / "clip")
    base = true_pictures(tmp_path / "base", 4)
    moments = Moments.of(torch.randn(200, 96))
    made = Fingerprint("mini_frechet", network="another")
    save_statistics(tmp_path / "stats.npz", Statistics(moments, made))
    prompts = prompts_file(tmp_path / "prompts.txt", 4)
    result = evaluate(
        *("--generated", base, "--prompts", prompts, "--reference", tmp_path / "stats.npz"),
        *("-m", "mini_frechet", "--metric-option", f"mini_frechet.folder={tmp_path / 'clip'}"),
    )
    assert result.exit_code == 2
    assert "computed differently" in result.stderr
    result = evaluate(
        *("--generated", base, "--prompts", prompts, "--json", "-m", "mini_frechet"),
        *("--metric-option", f"mini_frechet.folder={tmp_path / 'clip'}"),
    )
    assert result.exit_code == 0, result.output
    scored = json.loads(result.stdout)
    assert "4 pictures for 96 feature dimensions" in scored["warnings"][0]
    assert scored["metrics"]["mini_frechet"]["extras"]["noise_floor"] > 0


def test_the_doctor_finds_every_golden_number(evaluate: Evaluate) -> None:
    result = evaluate("doctor", "--json")
    checks = json.loads(result.stdout)["checks"]
    assert [check for check in checks if not check["held"]] == []
    assert len(checks) >= 15
    assert result.exit_code == 0


def test_the_doctor_reports_a_wrong_number(evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten.eval.functional import pixel

    monkeypatch.setattr(pixel, "psnr", lambda *_: 0 / 0)
    result = evaluate("doctor")
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.output


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_share_the_reading_and_agree_with_one(evaluate: Evaluate, tmp_path: Path) -> None:
    """Seven pictures, in batches of two, over two processes: the same figures as one, printed once."""
    generated, real = true_pictures(tmp_path / "generated", 7), true_pictures(tmp_path / "real", 5, seed=3)
    arguments = ["--generated", generated, "--baseline", generated, "--reference", real, "--json"]
    arguments += ["--batch-size", 2]
    arguments += ["--prompts", prompts_file(tmp_path / "prompts.txt", 7)]
    arguments += ["-m", "psnr,mini_parser,mini_frechet,mini_mmd"]
    alone = json.loads(evaluate(*arguments).stdout)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "hasten", "eval", *map(str, arguments)]
    shared = subprocess.run(command, check=True, capture_output=True, text=True)
    both = json.loads(shared.stdout)
    assert both["pictures"] == alone["pictures"] == 7
    for name, figure in alone["metrics"].items():
        assert both["metrics"][name]["value"] == pytest.approx(figure["value"], rel=1e-10, abs=1e-10), name


def test_statistics_of_a_reference_stand_for_its_pictures(evaluate: Evaluate, tmp_path: Path) -> None:
    generated, real = true_pictures(tmp_path / "generated", 6), true_pictures(tmp_path / "real", 8, seed=3)
    made = evaluate("stats", real, "--out", tmp_path / "real.npz", "-m", "mini_frechet")
    assert made.exit_code == 0, made.output
    assert "8 pictures" in made.output
    common = ("--generated", generated, "--json", "-m", "mini_frechet")
    common = (*common, "--prompts", prompts_file(tmp_path / "prompts.txt", 6))
    values = [
        json.loads(evaluate(*common, "--reference", reference).stdout)["metrics"]["mini_frechet"]["value"]
        for reference in (real, tmp_path / "real.npz")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-8)
    refused = evaluate("stats", real, "--out", tmp_path / "x.npz", "-m", "psnr")
    assert refused.exit_code == 2
    assert "only Frechet distances" in refused.stderr

"""Other packages beside hasten: each acts, leaves nothing behind, and the page follows from the figures."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import hasten
from hasten._cli import build_app
from hasten.eval.bench.peers import peer as peers
from hasten.eval.bench.peers.peer import choose_peers
from hasten.pipelines import mini

DOCS = Path(__file__).parents[3] / "docs" / "benchmarks"
CALLS: dict[str, dict[str, Any]] = {
    "mini/t2i-dit": {"height": 64, "width": 64},
    "mini/t2i-unet": {"height": 32, "width": 32},
    "mini/t2v-dit": {"height": 32, "width": 32, "num_frames": 5},
}
BOLDEST = {
    "first-block": {"threshold": 9.0},
    "pyramid": {"interval": 3},
    "taylorseer": {"interval": 3, "warmup": 2},
    "faster": {"below": 1001},
    "cache-dit": {"warmup": 1, "threshold": 9.0},
    "DeepCache": {"interval": 3},
    "ToMeSD": {"ratio": 0.5, "max_downsample": 4},
}


def latents(pipe: Any, model: str) -> torch.Tensor:
    call = {**mini.recommended_call(model), **CALLS[model], "num_inference_steps": 6, "output_type": "latent"}
    made = pipe(mini.prompts(1, model=model), generator=torch.Generator().manual_seed(0), **call)
    found: torch.Tensor = made.frames if hasattr(made, "frames") else made.images
    return found


@pytest.mark.parametrize("model", CALLS)
def test_every_peer_acts_and_leaves_nothing(model: str) -> None:
    pipe = hasten.load(model)
    pipe.set_progress_bar_config(disable=True)
    plain = latents(pipe, model)
    acted = []
    for peer in choose_peers(None):
        if peer.installed is None or peer.refusal(pipe):
            continue
        for _ in range(2):  # its memory does not outlive a block
            with peer.attached(pipe, BOLDEST[peer.name], 6):
                first = latents(pipe, model)
        assert not torch.equal(first, plain), peer.name
        assert torch.equal(latents(pipe, model), plain), peer.name
        acted.append(peer.name)
    assert {"pyramid", "taylorseer"} <= set(acted)


def bench(out: Path, *arguments: Any) -> Result:
    words = ("bench", "peers", "mini/t2i-dit", "--height", 32, "--width", 32, "--steps", 4, "--out", out)
    return CliRunner().invoke(build_app(), [str(word) for word in (*words, *arguments)])


FEW = ("--num-prompts", 3, "--peers", "first-block", "-m", "mini_parser,psnr", "--margin", "mini_parser=1")


@pytest.mark.slow
def test_a_run_is_judged_drawn_and_continued(tmp_path: Path) -> None:
    result = bench(tmp_path, *FEW, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["prompts"] == document["asked"] == 3
    owners = {row["owner"] for row in document["rows"]}
    assert {"plain", "first-block"} <= owners
    assert not any("not deterministic" in text for text in document["warnings"])
    best = {(row["owner"], row["kind"]) for row in document["best"]}
    assert {("plain", "tuned"), ("first-block", "recommended"), ("first-block", "tuned")} <= best
    assert "## mini/t2i-dit" in (tmp_path / "peers.md").read_text("utf-8")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "pictures" / "images").rglob("*.png")}
    again = bench(tmp_path, *FEW, "--json")
    assert again.exit_code == 0, again.output
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert json.loads(again.stdout)["rows"] == document["rows"]


def test_what_is_missing_is_named_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(peers, "version", version)
    result = bench(tmp_path, "--num-prompts", 3, "--peers", "cache-dit", "-m", "psnr", "--json")
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)["notes"]
    assert any("cache-dit is not installed" in note and "hasten[peers]" in note for note in notes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num-prompts", 1), "--num-prompts 3"),
        (("--num-prompts", 3, "--peers", "cachedit"), "cache-dit"),
        (("--num-prompts", 3, "--minutes", 0), "--minutes 0"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, arguments: tuple[Any, ...], words: str) -> None:
    result = bench(tmp_path, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", " ")


def test_the_page_is_that_of_the_committed_figures() -> None:
    spec = importlib.util.spec_from_file_location("peers_page", DOCS / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.rendered() == (DOCS / "peers.md").read_text("utf-8")

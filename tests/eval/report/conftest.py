"""A finished comparison put together by hand: true renders, and "accelerated" pictures that lose some of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

from hasten._config import Config
from hasten._generation import Job
from hasten.eval.compare.analysis import Settings
from hasten.eval.compare.document import Evaluation, evaluate_run
from hasten.eval.compare.engine import control_arms
from hasten.eval.compare.gates import parse_gates
from hasten.eval.compare.run import Request, arm_to_dict
from hasten.eval.compare.store import Record, RunStore
from hasten.eval.metrics.fidelity import Psnr, Ssim
from hasten.eval.metrics.miniature import Parser
from hasten.pipelines import mini
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import parse_caption

from .browser import Browser

COUNT = 12
NAME = "low <b>resolution</b>"


def _pictures(prompts: list[str], seed: int) -> list[Image.Image]:
    pixels = render_scenes([parse_caption(prompt) for prompt in prompts], seed, 0, 64)
    return [Image.fromarray(p) for p in ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()]


def _lost(pictures: list[Image.Image]) -> list[Image.Image]:
    """Every picture a little soft, and number 7 without any content."""
    soft = [picture.filter(ImageFilter.GaussianBlur(0.4 + i / 40)) for i, picture in enumerate(pictures)]
    soft[7] = Image.new("RGB", soft[7].size, "grey")
    return soft


def _step(index: int, milliseconds: float, side: int) -> dict[str, Any]:
    facts = {"bottleneck": {"virtual": side < 16}}
    place = {"run": 0, "index": index, "level": 1 - index / 8, "denoiser": "transformer", "branch": "both"}
    return {
        **place,
        "size": [16, 16],
        "resolution": [side, side],
        "milliseconds": milliseconds,
        "facts": facts,
    }


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    prompts = mini.prompts(COUNT)
    job = Job(tuple(prompts), 5, {"num_inference_steps": 8}, 4)
    request = Request("mini/made-up", job, {NAME: Config.of(["bottleneck"])})
    arms = [*request.measured_arms(), *control_arms(8, {NAME: 5})]
    store = RunStore(tmp_path_factory.mktemp("run"))
    about = {
        "machine": {"processor": "a made-up processor"},
        "command": "hasten compare",
        "created": "2026-01-01",
    }
    store.begin(
        {
            "request": request.to_dict(),
            "arms": [arm_to_dict(arm) for arm in arms],
            "flops": {arm.name: 10**9 * arm.steps // (2 if arm.config else 1) for arm in arms},
            "profiles": {
                name: {
                    "memory": {
                        "bytes": 9 * 10**8,
                        "before": 10**8,
                        "source": "made up",
                        "above_start": 8 * 10**8,
                    },
                    "stages": {"text encoder": 0.01, "denoiser": 1.1, "decoder": 0.1, "rest": 0.02},
                }
                for name in ("baseline", NAME)
            },
            "about": about,
        }
    )
    plain = _pictures(prompts, 0)
    made = {"baseline": plain, NAME: _lost(plain), "repeat": plain, "other seed": _pictures(prompts, 1)}
    seconds = {"baseline": 2.0, NAME: 1.25}
    for arm in arms:
        records = []
        for i, image in enumerate(made.get(arm.name, plain[1:] + plain[:1])):
            file, digest = store.save_frames(arm.name, i, [image])
            duration = seconds.get(arm.name, 1.9) + 0.01 * (i // 4)
            records.append(Record(arm.name, i, 5 + i + arm.seed_offset, file, digest, i // 4, duration))
        store.add(records)
    store.save_steps(
        NAME, {"steps": [_step(i, 9.0 if i < 5 else 20.0, 8 if i < 5 else 16) for i in range(8)]}
    )
    return store


@pytest.fixture(scope="session")
def document(store: RunStore) -> dict[str, Any]:
    gates = parse_gates(["psnr>=10", "speedup.low>=3"], ["psnr"], [NAME])
    settings = Settings(margins={"mini_parser": 0.2})
    return evaluate_run(store, Evaluation([Parser(), Psnr(), Ssim()], None, settings, gates))


@pytest.fixture(scope="session")
def page(store: RunStore, document: dict[str, Any]) -> Path:
    from hasten.eval.report import write_report

    return write_report(store, document)


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory, request: Any) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile"), dark=request.param) as opened:
        opened.open(page)
        yield opened

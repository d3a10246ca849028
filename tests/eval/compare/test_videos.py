"""Videos in a comparison: every frame is kept without loss, and a video is one sample."""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hasten._config import Config
from hasten._errors import ConfigError
from hasten._generation import Job
from hasten.eval.compare.document import Evaluation, evaluate_run
from hasten.eval.compare.run import Request, arm_to_dict
from hasten.eval.compare.store import Record, RunStore
from hasten.eval.functional.pixel import capped, psnr
from hasten.eval.metrics.fidelity import FrameConsistency, Psnr
from hasten.eval.pictures.images import to_uint8

PROMPTS, FRAMES = 3, 4


def _video(seed: int) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (FRAMES, 24, 24, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in pixels]


def _softened(frames: list[Image.Image], amount: int) -> list[Image.Image]:
    return [Image.fromarray(np.asarray(f) // amount * amount) for f in frames]


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path)
    job = Job(tuple(f"prompt {i}" for i in range(PROMPTS)), 0, {"num_inference_steps": 4}, 1)
    request = Request("made-up", job, {"fast": Config.of(["bottleneck"])})
    arms = request.measured_arms()
    about = {"machine": {"processor": "made up"}}
    fields = {"flops": {arm.name: 10 for arm in arms}, "profiles": {}, "about": about}
    store.begin({"request": request.to_dict(), "arms": [arm_to_dict(arm) for arm in arms], **fields})
    for i in range(PROMPTS):
        for arm, frames in (("baseline", _video(i)), ("fast", _softened(_video(i), 4 + 4 * i))):
            file, digest = store.save_frames(arm, i, frames)
            store.add([Record(arm, i, i, file, digest, i, 1.0)])
    return store


def test_frames_come_back_to_the_bit(store: RunStore) -> None:
    for mine, other in zip(store.open_frames("baseline", 1), _video(1), strict=True):
        assert mine.tobytes() == other.tobytes()


def test_a_lost_frame_is_a_lost_video(store: RunStore) -> None:
    assert len(store.records()) == 2 * PROMPTS
    (store.folder / "images" / "fast" / "00002" / "00001.png").unlink()
    assert ("fast", 2) not in store.records()


def test_a_video_has_the_mean_of_its_frames(store: RunStore) -> None:
    report = evaluate_run(store, Evaluation([Psnr(), FrameConsistency()]))
    for i, score in enumerate(report["scores"]["psnr"]["fast"]):
        base, fast = (to_uint8(list(store.open_frames(arm, i))) for arm in ("baseline", "fast"))
        assert score == pytest.approx(float(capped(psnr(base, fast)).mean()), rel=1e-12)
    assert len(report["scores"]["frame_consistency"]["baseline"]) == PROMPTS
    assert report["figures"]["fast"]["frame_consistency"]["change"]["n"] == PROMPTS


def test_videos_of_unequal_length_are_refused(store: RunStore) -> None:
    store.save_frames("fast", 1, _video(1) + _video(2))
    with pytest.raises(ConfigError, match="not all 4 frames long"):
        evaluate_run(store, Evaluation([Psnr()]))


def test_a_metric_of_videos_refuses_pictures() -> None:
    from hasten.eval.metric import Batch

    with pytest.raises(ConfigError, match="single pictures"):
        FrameConsistency().embed(Batch(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)))
    with pytest.raises(ConfigError, match="cannot be divided into videos"):
        Batch(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), frames=2)


def test_the_report_shows_them_moving(store: RunStore) -> None:
    from hasten.eval.report import write_report

    document = evaluate_run(store, Evaluation([Psnr()]))
    page = write_report(store, document).read_text("utf-8")
    moving = [
        chunk for chunk in page.split("data:image/png;base64,")[1:] if b"acTL" in b64decode(chunk[:400])
    ]
    assert moving, "no picture of the page is a moving PNG"

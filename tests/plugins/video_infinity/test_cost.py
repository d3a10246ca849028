from __future__ import annotations

import pytest

from hasten.plugins.video_infinity.cost import (
    Link,
    MeasuredRun,
    Messages,
    attention_bytes,
    efficiency,
    fit,
    norm_bytes,
    predict,
)

LINK = Link(2e-3, 5e8)


def measured(ranks: int, compute: float, rounds: int, received: int) -> MeasuredRun:
    return MeasuredRun(
        ranks, compute + rounds * LINK.latency + received / LINK.rate, compute, rounds, received
    )


def test_the_link_of_made_up_runs_is_found() -> None:
    found = fit(
        [
            measured(2, 1.0, 40, 10_000_000),
            measured(2, 2.0, 400, 30_000_000),
            measured(4, 1.5, 100, 90_000_000),
        ]
    )
    assert found.latency == pytest.approx(LINK.latency, rel=1e-6)
    assert found.rate == pytest.approx(LINK.rate, rel=1e-6)


def test_one_run_is_explained_by_both_in_equal_parts() -> None:
    run = MeasuredRun(2, 1.2, 1.0, 100, 1_000_000)
    link = fit([run])
    assert predict(run, 2, link) == pytest.approx(1.0 / 1.2)
    assert predict(run, 8, link) < predict(run, 2, link)
    assert predict(run, 8, link) == predict(run, 64, link)
    with pytest.raises(ValueError, match="without messages"):
        fit([MeasuredRun(1, 1.0, 1.0, 0, 0)])


def test_two_kinds_of_links_add_up() -> None:
    fast, slow = Link(1e-5, 1e11), Link(1e-4, 1e10)
    parts = [Messages(1000, 1e9, fast), Messages(1000, 1e9, slow)]
    assert [part.seconds for part in parts] == pytest.approx([0.02, 0.2])
    assert efficiency(0.78, parts) == pytest.approx(0.78)


def test_volumes_of_videocrafter2() -> None:
    """The largest temporal layers at 320 x 512: halos of 8, 16 global frames on 8 ranks, half precision."""
    frame = 2 * 40 * 64 * 320 * 2
    received = attention_bytes(frame, 8, (2,) * 8, 2, keys_and_values=True)
    assert received == 2 * frame * (16 + 14)
    assert attention_bytes(frame, 8, (2,) * 8, 2) * 2 == received
    assert norm_bytes(2, 32, 8) == 768 * 7

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.schedules.clips import Scope, assign, clips_for, compressed, global_frames, partition, window


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3))
def test_parts_cover_all_frames_in_order(units: int, clips: int, multiple: int) -> None:
    frames = units * multiple
    if clips > units:
        with pytest.raises(ValueError, match="cannot fill"):
            partition(frames, clips, multiple)
        return
    parts = partition(frames, clips, multiple)
    assert [frame for part in parts for frame in part] == list(range(frames))
    assert all(len(part) % multiple == 0 for part in parts)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= multiple
    assert sizes == sorted(sizes, reverse=True)


def test_frames_that_fill_no_patch() -> None:
    with pytest.raises(ValueError, match="7 latent frames are no multiple of 2"):
        partition(7, 2, 2)


def test_ranks_get_runs_of_clips() -> None:
    assert assign(5, 2) == (range(0, 3), range(3, 5))
    with pytest.raises(ValueError, match="2 clips cannot occupy 3 ranks"):
        assign(2, 3)
    assert clips_for(23, 6) == 4


@given(st.integers(1, 80), st.integers(0, 40), st.sampled_from(["linspace", "stride", "sink"]))
def test_global_frames(frames: int, count: int, sampling: str) -> None:
    chosen = global_frames(frames, count, sampling)  # type: ignore[arg-type]
    assert list(chosen) == sorted(set(chosen))
    assert len(chosen) <= min(count, frames)
    assert all(0 <= frame < frames for frame in chosen)
    if count >= frames:
        assert chosen == tuple(range(frames))
    if chosen:
        assert chosen[0] == 0


def test_linspace_has_both_ends_and_lists_are_checked() -> None:
    assert global_frames(24, 4) == (0, 8, 15, 23)
    assert global_frames(24, 4, "stride") == (0, 6, 12, 18)
    assert global_frames(10, 0, (7, 2, 7)) == (2, 7)
    with pytest.raises(ValueError, match="global frame 10 does not exist among 10"):
        global_frames(10, 0, (3, 10))


@given(st.integers(2, 40), st.integers(0, 9), st.integers(0, 9), st.booleans(), st.data())
def test_scope_is_a_set(frames: int, halo: int, count: int, block: bool, data: st.DataObject) -> None:
    clips = partition(frames, data.draw(st.integers(1, frames)))
    clip = data.draw(st.sampled_from(clips))
    scope = Scope(frames, clip, halo, global_frames(frames, count), block)
    for frame in clip:
        near, far = scope.near(frame), scope.far(frame)
        assert frame in near
        assert not set(near) & set(far)
        assert set(near) | set(far) == set(near) | set(scope.chosen)
        assert scope.seen(frame) == len(set(near) | set(far))
        assert set(near) <= set(scope.local)
        assert min(near) >= 0
        assert max(near) < frames
        if not block:
            assert near == window(frame, halo, frames)


def test_positions_are_squeezed_into_the_trained_length() -> None:
    assert compressed(7, 20, None) == 7.0
    assert compressed(7, 16, 16) == 7.0
    assert [compressed(p, 41, 21) for p in (0, 20, 40)] == [0.0, 10.0, 20.0]

"""Which steps are dense, refreshed and sparse: the published tables, and every other number of steps."""

from __future__ import annotations

from collections import Counter

import pytest

from hasten.schedules.sparse_steps import Phase, SparseSteps, warmup_steps

LETTERS = {Phase.DENSE: "D", Phase.REFRESH: "R", Phase.SPARSE: "s"}


def letters(schedule: SparseSteps, steps: int) -> str:
    return "".join(LETTERS[phase] for phase in schedule.phases(steps))


@pytest.mark.parametrize(
    ("steps", "share", "warmup", "refresh", "sparse"),
    [(20, 0.25, 5, 3, 12), (50, 0.2, 10, 8, 32), (50, 0.3, 15, 7, 28)],
    ids=["pixart", "hunyuan-dit", "cogvideox"],
)
def test_published_schedules(steps, share, warmup, refresh, sparse):
    assert warmup_steps(share, steps) == warmup
    counts = Counter(SparseSteps(warmup).phases(steps))
    assert counts == {Phase.DENSE: warmup, Phase.REFRESH: refresh, Phase.SPARSE: sparse}


def test_pixart_refreshes_where_the_paper_lists_it():
    phases = list(SparseSteps(5).phases(20))
    assert [i for i, phase in enumerate(phases) if phase is Phase.REFRESH] == [5, 10, 15]
    assert list(SparseSteps(5, refresh=frozenset({5, 10, 15})).phases(20)) == phases


def test_a_warm_up_that_ends_between_refreshes_starts_with_one():
    assert letters(SparseSteps(7), 14) == "DDDDDDDRssRsss"
    assert letters(SparseSteps(2, refresh=frozenset({4})), 6) == "DDRsRs"


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [(28, 7, "DDDDDDDRssRssssRssssRssssRss"), (3, 5, "DDD"), (1, 0, "R"), (1, 1, "D"), (6, 0, "RssssR")],
)
def test_any_number_of_steps(steps, warmup, expected):
    assert letters(SparseSteps(warmup), steps) == expected


def test_a_period_of_one_never_is_sparse():
    assert letters(SparseSteps(1, period=1), 4) == "DRRR"


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [(4, 50, 4), (0, 9, 0), (0.25, 28, 7), (0.3, 28, 9), (0.3, 50, 15), (1.0, 7, 7)],
)
def test_warm_up_as_a_number_or_a_share(warmup, steps, expected):
    assert warmup_steps(warmup, steps) == expected

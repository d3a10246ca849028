"""Claims decide what can share a pipeline."""

from __future__ import annotations

import pytest

import hasten
from hasten import Access, Claim, ConflictError, PluginError
from hasten._conflicts import TESTED, check_claims, untested_pairs

SLOT = "attention.self"


def check(one: Claim, other: Claim) -> None:
    check_claims([("left", [one]), ("right", [other])])
    check_claims([("right", [other]), ("left", [one])])


@pytest.mark.parametrize("access", list(Access))
def test_exclusive_tolerates_nobody(access: Access) -> None:
    mine = Claim(SLOT, Access.EXCLUSIVE)
    for pair in ((mine, Claim(SLOT, access)), (Claim(SLOT, access), mine)):
        with pytest.raises(ConflictError, match="exclusively") as caught:
            check(*pair)
        for word in (SLOT, "all modules", "'left'", "'right'", "Enable only one"):
            assert word in str(caught.value)


def test_a_divided_slot_is_for_those_who_can_compute_parts() -> None:
    divider, whole = Claim(SLOT, Access.DIVIDES), Claim(SLOT, Access.EXCLUSIVE)
    able = Claim(SLOT, Access.EXCLUSIVE, follows_division=True)
    for pair in ((divider, able), (able, divider)):
        check(*pair)
    for other in (
        whole,
        divider,
        Claim(SLOT, Access.READS),
        Claim(SLOT, Access.DIVIDES, follows_division=True),
    ):
        with pytest.raises(ConflictError, match="exclusively"):
            check(divider, other)
    with pytest.raises(ConflictError):
        check(able, able)


@pytest.mark.parametrize(
    ("mine", "theirs", "shared"),
    [
        ({"t.0", "t.1"}, {"t.1", "t.2"}, "t.1"),
        (None, {"t.1"}, "t.1"),
        ({"t"}, {"t.1.attn"}, "t.1.attn"),
        ({"t.10"}, {"t.1"}, None),
        ({"t.0"}, {"t.1"}, None),
        (set(), None, None),
    ],
)
def test_only_overlapping_modules_collide(
    mine: set[str] | None, theirs: set[str] | None, shared: str | None
) -> None:
    claims = [Claim(SLOT, Access.EXCLUSIVE, None if m is None else frozenset(m)) for m in (mine, theirs)]
    if shared is None:
        check(*claims)
        return
    with pytest.raises(ConflictError, match=rf"of {shared} exclusively"):
        check(*claims)


def test_reader_that_cannot_follow_a_writer() -> None:
    writer = Claim("tokens.shape", Access.WRITES)
    check(writer, Claim("tokens.shape", Access.READS))
    check(writer, writer)
    with pytest.raises(
        ConflictError, match=r"'left' changes slot 'tokens.shape'.*'right' needs it unchanged"
    ):
        check(writer, Claim("tokens.shape", Access.READS, follows_writes=False))


def test_different_slots_are_fine() -> None:
    check(Claim("weights.structure", Access.EXCLUSIVE), Claim(SLOT, Access.EXCLUSIVE))


def test_misspelt_slot_is_refused_and_own_slots_are_not() -> None:
    check_claims([("left", [Claim("left.cache", Access.WRITES)])])
    with pytest.raises(PluginError, match=r"unknown slot 'atention\.self'; did you mean 'attention\.self'"):
        check_claims([("left", [Claim("atention.self", Access.READS)])])


def test_untested_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TESTED, frozenset({"b", "a"}), "a test")
    assert untested_pairs(["a", "b", "c"]) == (("a", "c"), ("b", "c"))


def test_conflict_is_found_before_anything_is_touched(flux: object) -> None:
    from hasten._fingerprint import fingerprint

    before = fingerprint(flux)
    config = {"count": {"slot": "tokens.shape", "access": "exclusive"}, "scale": {}}
    for ask in (hasten.plan, hasten.accelerate):
        with pytest.raises(ConflictError, match=r"'count' needs slot 'tokens\.shape'"):
            ask(flux, config)
    assert fingerprint(flux) == before

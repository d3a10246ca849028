"""Which techniques can share a pipeline, decided from their claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from hasten._claims import SLOTS, Access, Claim
from hasten._errors import ConflictError, PluginError, suggestion

__all__ = ["TESTED", "check_claims", "first_collision", "untested_pairs"]

_TESTS = {
    "tests/plugins/aptp/test_compose.py": [("aptp", "bottleneck"), ("aptp", "rettention")],
    "tests/test_pairs.py": [
        ("aptp", "guidance_interval"),
        ("bottleneck", "cache"),
        ("bottleneck", "guidance_interval"),
        ("bottleneck", "rettention"),
        ("bottleneck", "video_infinity"),
        ("cache", "guidance_interval"),
        ("guidance_interval", "rettention"),
        ("guidance_interval", "video_infinity"),
        ("rettention", "video_infinity"),
    ],
}
TESTED = {frozenset(pair): test for test, pairs in _TESTS.items() for pair in pairs}
"""Pairs of techniques with a recorded combination test, and the test's name."""

Owned = tuple[str, Sequence[Claim]]


def check_claims(owned: Sequence[Owned]) -> None:
    """Refuse techniques whose claims collide.

    Args:
        owned: name and claims of every technique.

    Raises:
        PluginError: a claim names a slot that does not exist.
        ConflictError: two claims cannot be met together; the message names slot, modules and both owners.
    """
    for name, claims in owned:
        for claim in claims:
            _check_slot(name, claim)
    for (first, claims_1), (second, claims_2) in combinations(owned, 2):
        for one in claims_1:
            for other in claims_2:
                if reason := _collision(first, one, second, other):
                    raise ConflictError(reason)


def first_collision(claims: Sequence[Claim], others: Sequence[Claim]) -> str | None:
    """The slot in which two parties' claims collide, ``None`` if they can be met together."""
    found = (one.slot for one in claims for other in others if _collision("", one, "", other) is not None)
    return next(found, None)


def untested_pairs(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of these techniques that no combination test covers."""
    return tuple(pair for pair in combinations(names, 2) if frozenset(pair) not in TESTED)


def _check_slot(name: str, claim: Claim) -> None:
    if claim.slot in SLOTS or claim.slot.startswith(f"{name}."):
        return  # a technique may keep slots of its own below its name
    raise PluginError(
        f"technique {name!r} claims an unknown slot {claim.slot!r}{suggestion(claim.slot, SLOTS)} "
        f"Slots: {', '.join(SLOTS)}; a technique's own slots are named '{name}.<something>'."
    )


def _collision(first: str, one: Claim, second: str, other: Claim) -> str | None:
    if one.slot != other.slot:
        return None
    shared = _overlap(one, other)
    if shared is not None and not shared:
        return None
    if _divided(one, other) or _divided(other, one):
        return None
    where = f"slot {one.slot!r} ({SLOTS.get(one.slot, 'a slot of its own')}) of {_name_modules(shared)}"
    for owner, claim, rival, rivals in ((first, one, second, other), (second, other, first, one)):
        if claim.access in (Access.EXCLUSIVE, Access.DIVIDES):
            uses = (
                "also needs it exclusively"
                if rivals.access is Access.EXCLUSIVE
                else f"{rivals.access.value} it"
            )
            return f"{owner!r} needs {where} exclusively, and {rival!r} {uses}. Enable only one of them."
        if claim.access is Access.READS and not claim.follows_writes and rivals.access is Access.WRITES:
            return (
                f"{rival!r} changes {where} during a run, and {owner!r} needs it unchanged. Enable only one "
                f"of them."
            )
    return None


def _divided(one: Claim, other: Claim) -> bool:
    """Whether ``one`` divides the slot, and ``other`` computes a part of it as it would compute all of it."""
    return one.access is Access.DIVIDES and other.access is not Access.DIVIDES and other.follows_division


def _overlap(one: Claim, other: Claim) -> frozenset[str] | None:
    """Modules both claims cover; ``None`` for all of them. A module covers what is below it."""
    if one.modules is None or other.modules is None:
        return other.modules if one.modules is None else one.modules
    inside = {a for a in one.modules for b in other.modules if a == b or a.startswith(f"{b}.")}
    return frozenset(inside | {b for b in other.modules for a in one.modules if b.startswith(f"{a}.")})


def _name_modules(modules: frozenset[str] | None) -> str:
    if modules is None:
        return "all modules"
    names = sorted(modules)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"

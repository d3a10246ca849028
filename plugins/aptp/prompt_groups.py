"""Which prompts of a batch run together, and on which expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.plugins.aptp.config import AptpConfig
from hasten.plugins.aptp.router import BASE, Decision

__all__ = ["Group", "group_prompts"]


@dataclass(frozen=True)
class Group:
    """Prompts that run together.

    Args:
        expert: number of the expert, or :data:`~hasten.plugins.aptp.router.BASE`.
        prompts: positions in the batch, ascending.
    """

    expert: int
    prompts: tuple[int, ...]


def group_prompts(
    decisions: Sequence[Decision],
    shares: Mapping[int, float],
    config: AptpConfig,
    resident: Sequence[int],
    copies: int = 1,
) -> tuple[list[Group], list[Decision]]:
    """Groups of a batch in the order in which they run: experts in memory first, then large groups.

    Args:
        decisions: of each prompt.
        shares: expert -> share of the whole model's cost, the base among them.
        config: the policy.
        resident: experts in memory.
        copies: pictures of each prompt.

    Returns:
        The groups, and the decisions after the policy.
    """
    final = list(decisions)
    if config.policy == "single":
        best = max((d.expert for d in decisions), key=lambda expert: shares[expert])
        final = [d if d.expert == best else Decision(best, d.confidence, "single") for d in decisions]
    elif config.policy == "coalesce":
        final = _coalesced(final, shares, config, copies)
    members: dict[int, list[int]] = {}
    for position, decision in enumerate(final):
        members.setdefault(decision.expert, []).append(position)
    groups = [Group(expert, tuple(prompts)) for expert, prompts in members.items()]
    groups.sort(key=lambda g: (g.expert != BASE and g.expert not in resident, -len(g.prompts), g.prompts[0]))
    return groups, final


def _coalesced(
    decisions: list[Decision], shares: Mapping[int, float], config: AptpConfig, copies: int
) -> list[Decision]:
    """Small groups move up to the cheapest costlier expert that runs anyway, never down."""
    counts: dict[int, int] = {}
    for decision in decisions:
        counts[decision.expert] = counts.get(decision.expert, 0) + copies
    moves: dict[int, int] = {}
    for expert in sorted(counts, key=lambda e: shares[e]):
        if counts[expert] >= config.min_group:
            continue
        above = [
            other
            for other in counts
            if shares[expert] < shares[other] <= shares[expert] + config.max_extra_cost
        ]
        if above:
            moves[expert] = min(above, key=lambda e: shares[e])
            counts[moves[expert]] += counts.pop(expert)

    def target(expert: int) -> int:
        while expert in moves:
            expert = moves[expert]
        return expert

    return [
        d if target(d.expert) == d.expert else Decision(target(d.expert), d.confidence, "coalesced")
        for d in decisions
    ]

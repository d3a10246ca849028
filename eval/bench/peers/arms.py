"""The rows of the benchmark: plain sampling, hasten, and every peer over its dial."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import hasten
from hasten.commands import Config, Job, own_solver, solving_with
from hasten.eval.bench.peers.peer import Peer
from hasten.eval.compare.engine import REPEAT, Arm
from hasten.eval.compare.knee import default_steps
from hasten.eval.compare.run import problem_of, steps_are_free
from hasten.eval.sweep.arms import plain_settings

__all__ = ["OURS", "PLAIN", "REPEATED", "PeerArm", "Row", "rows_of"]

PLAIN, OURS = "plain", "hasten"
REPEATED = "plain, repeated"
"""Curve of the baseline's second run, which is not drawn."""


@dataclass(frozen=True)
class PeerArm(Arm):
    """A row with a peer on the pipeline instead of techniques.

    Args:
        peer: what is attached.
        options: of the peer.
    """

    peer: Peer | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def attached(self, pipe: Any) -> Iterator[None]:
        """The pipeline with the peer for the length of a ``with`` block."""
        assert self.peer is not None
        with solving_with(pipe, self.solver), self.peer.attached(pipe, self.options, self.steps):
            yield None


@dataclass(frozen=True)
class Row:
    """A row, where it is drawn, and whose it is.

    Args:
        arm: what runs.
        curve: on which its point lies.
        label: beside its point.
        owner: ``plain``, ``hasten`` or the name of a peer.
        recommended: whether its owner recommends it: a preset, or a peer's documented setting.
    """

    arm: Arm
    curve: str
    label: str
    owner: str
    recommended: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        options = dict(self.arm.options) if isinstance(self.arm, PeerArm) else None
        return {
            "name": self.arm.name,
            "curve": self.curve,
            "label": self.label,
            "owner": self.owner,
            "recommended": self.recommended,
            "options": options,
        }


def rows_of(
    pipe: Any, job: Job, peers: Sequence[Peer], tuned: Mapping[str, Config]
) -> tuple[list[Row], list[str]]:
    """All rows, the baseline first, and a note on each that is left out before it is tried.

    Args:
        pipe: the stock pipeline.
        job: prompts, seed, call and batch size; its steps are the reference.
        peers: in order.
        tuned: name -> configuration, of ``hasten tune`` for example.
    """
    reference = int(job.call["num_inference_steps"])
    free = steps_are_free(pipe)
    plain = plain_settings(reference, default_steps(reference) if free else (), (), own_solver(pipe))
    rows = [Row(setting.arm, setting.curve, setting.label, PLAIN) for setting in plain]
    rows.append(Row(Arm(REPEAT, "control", reference), REPEATED, "", PLAIN))
    starts = (reference, *([reference // 2] if free and reference >= 4 else []))
    notes: list[str] = []
    for row in _own(pipe, job, starts, tuned):
        problem = problem_of(pipe, row.arm, job)
        if problem:
            notes.append(f"{row.arm.name} is left out: {problem}")
        else:
            rows.append(row)
    for peer in peers:
        if peer.installed is None:
            continue
        if reason := peer.refusal(pipe):
            notes.append(f"{peer.name} is left out: {reason}")
            continue
        rows += _of_peer(pipe, peer, starts)
    return rows, notes


def _own(pipe: Any, job: Job, starts: Sequence[int], tuned: Mapping[str, Config]) -> Iterator[Row]:
    """Presets from every number of steps, and configurations from their own."""
    found: list[tuple[int, Config]] = []
    for steps in starts:
        for preset in hasten.presets(pipe, **{**job.call, "num_inference_steps": steps}):
            if not preset.config.techniques or (steps, preset.config) in found:
                continue  # plain sampling, or the same as a more careful preset
            found.append((steps, preset.config))
            arm = Arm(f"{preset.name}, {steps} steps", "control", steps, preset.config)
            yield Row(arm, f"{OURS}, presets ({steps} steps)", preset.name, OURS, recommended=True)
    for name, config in tuned.items():
        steps = config.steps or starts[0]
        arm = Arm(f"{name}, {steps} steps", "control", steps, config, solver=config.solver)
        yield Row(arm, f"{OURS}, given configurations", name, OURS)


def _of_peer(pipe: Any, peer: Peer, starts: Sequence[int]) -> Iterator[Row]:
    for steps in starts:
        for position in peer.positions(pipe):
            if steps != starts[0] and not position.halved:
                continue
            arm = PeerArm(
                f"{peer.name} {position.label}, {steps} steps",
                "control",
                steps,
                peer=peer,
                options=position.options,
            )
            curve = f"{peer.name} ({steps} steps)"
            yield Row(arm, curve, position.label, peer.name, position.recommended and steps == starts[0])

"""Classifier-free guidance on two ranks: each computes one branch of the same clips."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.extend import DenoiserCall, Guidance, UnsupportedError
from hasten.plugins.video_infinity.process_mesh import ProcessMesh
from hasten.plugins.video_infinity.session import Session
from hasten.plugins.video_infinity.transport import all_gather

__all__ = ["GuidanceBranches", "own_branch"]


def own_branch(values: Mapping[str, Any], batch: int, processes: ProcessMesh) -> dict[str, Any]:
    """The half of batched arguments that belongs to the branch of this rank.

    Args:
        values: arguments of the denoiser.
        batch: number of samples of both branches together.
        processes: the processes.
    """
    own = dict(values)
    for name, value in values.items():
        if isinstance(value, Tensor) and value.ndim > 0 and len(value) > 1 and len(value) % batch == 0:
            own[name] = value.chunk(processes.cfg_ranks)[processes.branch]
    return own


class GuidanceBranches:
    """Computes forwards of the denoiser, divided by branches if ``cfg_ranks`` is 2.

    Args:
        session: the run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def compute(self, call: DenoiserCall, forward: Callable[[DenoiserCall], Any]) -> Any:
        """The output of one forward of the denoiser.

        Raises:
            UnsupportedError: the branches are to be divided, and the call has only one.
        """
        processes = self._session.processes
        if processes.cfg_ranks == 1:
            return forward(call)
        guidance = self._session.target.layout.guidance
        if guidance is Guidance.BATCHED and call.step.branch == "both":
            return self._half(call, forward)
        if guidance is Guidance.SEQUENTIAL and call.run.pipe.do_classifier_free_guidance:
            return self._turn(call, forward)
        raise UnsupportedError(
            f"cfg_ranks={processes.cfg_ranks} divides the branches of classifier-free guidance, and this "
            f"call of {self._session.target.name} has one only; raise guidance_scale above 1, or set "
            "cfg_ranks=1"
        )

    def _half(self, call: DenoiserCall, forward: Callable[[DenoiserCall], Any]) -> Any:
        """Both branches in one batch: each rank computes its half, and they exchange the results."""
        session = self._session
        output = forward(call.replace_kwargs(self._mine(call.kwargs)))
        mine = call.sample(output).contiguous()
        whole = mine.new_empty(session.processes.cfg_ranks, *mine.shape)
        with session.processes.explained():
            all_gather(whole.view(-1), mine.view(-1), group=session.processes.cfg_group)
        return call.with_sample(output, whole.flatten(0, 1))

    def _mine(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        session = self._session
        name = session.mixing.latents_argument(kwargs)
        names = (name, "timestep", *session.mixing.text)
        divided = {key: kwargs[key] for key in names if key in kwargs}
        return {**kwargs, **own_branch(divided, len(kwargs[name]), session.processes)}

    def _turn(self, call: DenoiserCall, forward: Callable[[DenoiserCall], Any]) -> Any:
        """One forward per branch: each rank computes one of the two.

        The pipeline reads the first output only after the second forward. So the rank that does not compute the first
        branch returns a tensor that it fills in later.
        """
        session = self._session
        second = call.step.branch == "uncond"
        if not second:
            if session.processes.branch == 0:
                output = forward(call)
                session.pending_branch = call.sample(output)
                return output
            layout, pipe = session.target.layout, call.run.pipe
            blank = layout.encode_output(
                pipe, call.kwargs, torch.zeros_like(layout.decode(pipe, call.kwargs))
            )
            session.pending_branch = blank
            return (blank,)
        first = session.pending_branch
        if first is None:
            raise RuntimeError("the second branch of guidance came before the first")
        output = forward(call) if session.processes.branch == 1 else (torch.empty_like(first),)
        self._swap(first, call.sample(output))
        session.pending_branch = None
        return output

    def _swap(self, first: Tensor, second: Tensor) -> None:
        group = self._session.processes.cfg_group
        for branch, tensor in enumerate((first, second)):
            whole = tensor if tensor.is_contiguous() else tensor.contiguous()
            with self._session.processes.explained():
                dist.broadcast(whole, group=group, group_src=branch)
            if whole is not tensor:
                tensor.copy_(whole)

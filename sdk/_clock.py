"""The run clock: where in a run a denoiser forward is, told by its noise level and never by counting calls.

Counting breaks as soon as guidance calls the denoiser twice, a layer-skipping mode calls it a third time, or a
user's callback ends a run early. The level is always there, in the arguments of the forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten._adapters.base import Guidance, LatentSize
    from hasten.schedules.noise import NoiseLevel

__all__ = ["Clock", "Step", "expected_batch"]

_Switches = frozenset[tuple[str, Any]]


@dataclass(frozen=True)
class Step:
    """Where in a run a denoiser forward is.

    Args:
        index: number of distinct noise levels before this one, from 0.
        noise: level of the solver's latents.
        branch: ``"cond"`` or ``"uncond"`` where guidance runs one forward for each, ``"both"`` for one forward over
            both halves of a doubled batch, ``"only"`` without guidance. A further forward at the same level whose
            switches differ (some layers skipped, modalities kept apart) is ``"extra 1"``, one with others again
            ``"extra 2"``: techniques must not mix what they keep of it with the rest.
        size: extent of the solver's latents.
    """

    index: int
    noise: NoiseLevel
    branch: str
    size: LatentSize


class Clock:
    """Turns levels into steps.

    Args:
        guidance: how the family runs classifier-free guidance.
        batch: how many latents the call asked for, ``None`` if that is not known.
        doubled: whether guidance is on, for deciding when ``batch`` is not known.
    """

    def __init__(self, guidance: Guidance, batch: int | None, doubled: bool) -> None:
        self._guidance = guidance.value
        self._batch = batch
        self._doubled = doubled
        self._time: float | None = None
        self._index = -1
        self._forwards = 0
        self._ordinary: set[_Switches] = set()
        self._extra: dict[_Switches, str] = {}
        self.restarts = 0
        """How many times the level rose: each rise begins a new sub-run inside the run."""

    def tick(
        self, noise: NoiseLevel, size: LatentSize, batch: int, arguments: Mapping[str, Any] | None = None
    ) -> Step:
        """The step of a forward at ``noise``, with ``batch`` latents of ``size`` and these ``arguments``."""
        time = noise.time
        if self._time is None or time != self._time:
            if self._time is not None and time > self._time:
                self.restarts += 1
                self._index = -1
            self._index += 1
            self._time = time
            self._forwards = 0
        branch = self._further(_switches(arguments or {})) or self._branch(batch)
        self._forwards += 1
        return Step(self._index, noise, branch, size)

    def _further(self, switches: _Switches) -> str | None:
        """The name of a forward that guidance alone does not explain; ``None`` for an ordinary one."""
        if self._forwards < (1 if self._guidance == "batched" else 2):
            self._ordinary.add(switches)
            return None
        if switches in self._ordinary:
            return None
        return self._extra.setdefault(switches, f"extra {len(self._extra) + 1}")

    def _branch(self, batch: int) -> str:
        if self._guidance == "sequential":
            return "uncond" if self._forwards % 2 else "cond"
        if self._guidance == "embedded":
            # A second forward at one level is the negative prompt of "true" guidance on a distilled model.
            return "uncond" if self._forwards % 2 else "only"
        doubled = self._doubled if self._batch is None else batch > self._batch
        return "both" if doubled else "only"


def _switches(arguments: Mapping[str, Any]) -> _Switches:
    """Arguments that choose how a denoiser computes: truth values, words, and lists of layers."""
    found: set[tuple[str, Any]] = set()
    for name, value in arguments.items():
        if isinstance(value, (bool, str)):
            found.add((name, value))
        elif isinstance(value, (list, tuple)) and all(isinstance(item, (int, str)) for item in value):
            found.add((name, tuple(value)))
    return frozenset(found)


def expected_batch(arguments: Mapping[str, Any]) -> int | None:
    """How many latents a pipeline call asks for, before guidance doubles them; ``None`` if its arguments don't say."""
    prompt = arguments.get("prompt")
    if isinstance(prompt, str):
        count = 1
    else:
        named = (prompt, arguments.get("prompt_embeds"), arguments.get("class_labels"))
        sized = next((value for value in named if value is not None), None)
        if sized is None:
            return None
        count = len(sized) if hasattr(sized, "__len__") else 1
    copies = arguments.get("num_images_per_prompt") or arguments.get("num_videos_per_prompt") or 1
    return count * int(copies)

"""Capabilities of a pipeline family: small classes, collected in an :class:`Adapter`.

An adapter describes a family (packing of latents, arguments with positions, prediction type); it never edits a
pipeline. It is found by the class names in the pipeline's method resolution order, without importing model code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from hasten._pipeline import Pipeline, Scheduler
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor

CapabilityT = TypeVar("CapabilityT")


class Prediction(Enum):
    """Prediction type of the denoiser, for ``x = alpha * x0 + sigma * noise``."""

    VELOCITY = "v"  # flow: noise - x0
    NEGATIVE_VELOCITY = "-v"  # flow: x0 - noise (the pipeline negates it in its loop)
    EPSILON = "eps"  # VP: noise
    VP_VELOCITY = "vp-v"  # VP: alpha * noise - sigma * x0


class Guidance(Enum):
    """How a family runs classifier-free guidance.

    ``BATCHED``: one forward over both branches. ``SEQUENTIAL``: one forward for each, the conditional one first.
    ``EMBEDDED``: a distilled model that is told the scale, with one forward.
    """

    BATCHED = "batched"
    SEQUENTIAL = "sequential"
    EMBEDDED = "embedded"


@dataclass(frozen=True)
class LatentSize:
    """Latent extent in latent pixels; ``frames`` is ``None`` for images."""

    height: int
    width: int
    frames: int | None = None


class Moments(ABC):
    """Base of the two capabilities that the run clock reads to locate a forward in a run."""

    guidance: Guidance = Guidance.BATCHED
    without: str = ""
    """Explanation for messages if a pipeline lacks this capability."""

    @abstractmethod
    def level(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """Progress of the run, falling from forward to forward."""

    @abstractmethod
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """Latent extent of this forward."""

    def decoder_input(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, ...] | None:  # noqa: ARG002
        """Shape of the latents of one sample that a call with these arguments decodes, ``None`` if not known."""
        return None


@dataclass(frozen=True)
class ScaleCost:
    """Floating-point operations of the forward of one scale, over all rows of the batch.

    Args:
        grid: rows and columns of its tokens.
        rest: everything but self-attention.
        per_key: self-attention, for each key that one head reads.
        keys: keys that all heads of all layers read from an exact cache.
    """

    grid: tuple[int, int]
    rest: float
    per_key: float
    keys: int

    def flops(self, keys: int) -> float:
        """Operations where all heads of all layers together read ``keys`` keys."""
        return self.rest + self.per_key * keys


class ScaleSchedule(Moments):
    """Generation scale by scale, each scale one forward that reads the keys and values of the scales before it.

    The pipeline's call takes a ``kv_cache``, and its transformer a ``cache``, a
    :class:`hasten.extend.KVCache`.
    """

    without = "it does not generate scale by scale with a cache of keys and values"

    @abstractmethod
    def scales(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[tuple[int, int], ...]:
        """Token grids (rows, columns) of a pipeline call with these arguments, coarse to fine."""

    @abstractmethod
    def scale(self, kwargs: Mapping[str, Any]) -> int:
        """Index of the scale of this forward."""

    def costs(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[ScaleCost, ...] | None:  # noqa: ARG002
        """Cost of each scale of a call with these arguments, ``None`` if unknown."""
        return None


class LatentLayout(Moments):
    """Latents of one family: packing, positions, noise level and prediction kind.

    All methods are pure. ``kwargs`` are the arguments of one denoiser forward, bound to their names;
    ``pipe`` is the pipeline (read only, for its scheduler and configuration).
    """

    multiple: int = 2
    """Latent height and width must be multiples of this many latent pixels."""
    conditional_first: bool = False
    """Whether a forward over both branches of guidance has the conditional one first; most have it second."""
    even_sigmas: bool = False
    """Whether the pipeline's call gives its scheduler the sigmas ``1 - j / N``; see :meth:`sigmas` for others."""
    controls: tuple[str, ...] = ()
    """Names of the denoiser arguments with features of control networks, on the grid of the latents."""
    rigid_controls: str | None = None
    """Reason why these features cannot be brought to another grid, ``None`` if they can."""
    joins_text: bool = False
    """Whether the denoiser's text is CLIP's tokens, and after them those of another encoder."""
    without = "it does not denoise one latent step by step"
    fixed: str | None = None
    """Reason why no forward of the family can run at another size, ``None`` if it can."""

    def further_text(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int:  # noqa: ARG002
        """Tokens of one sample that join those of the text: registers, other encoders of the same call."""
        return 0

    def further_forwards(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int:  # noqa: ARG002
        """Forwards at every level, without those of classifier-free guidance (layers skipped, modalities apart)."""
        return 0

    @abstractmethod
    def prediction(self, pipe: Pipeline) -> Prediction:
        """Prediction type of the denoiser (VP families read the scheduler's ``prediction_type``)."""

    @abstractmethod
    def level(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """Noise level of this forward, from its timestep argument."""

    @abstractmethod
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """Latent extent of this forward."""

    @abstractmethod
    def decode(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor:
        """The noisy latents that the solver steps, (B, C, H, W) or (B, C, F, H, W), unpacked."""

    @abstractmethod
    def encode(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor, level: NoiseLevel
    ) -> dict[str, Any]:
        """Arguments of a forward on ``latent``, of any legal size, at ``level``.

        Positions and conditions are adapted. With the unchanged latents, the result equals ``kwargs``.
        """

    @abstractmethod
    def decode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], sample: Any) -> Tensor:
        """The denoiser's sample for the forward described by ``kwargs``, unpacked like :meth:`decode`.

        May have more channels than the latents (learned variance): the prediction comes first.
        """

    @abstractmethod
    def encode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Any:
        """Inverse of :meth:`decode_output`: the denoiser's output for ``kwargs``."""

    @abstractmethod
    def pixels(self, pipe: Pipeline, size: LatentSize) -> tuple[int, int]:
        """Height and width in image pixels of a latent size."""

    @abstractmethod
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """Latent extent that a pipeline call with these (bound, defaulted) arguments will use."""

    def expert_boundary(self, pipe: Pipeline) -> float | None:  # noqa: ARG002
        """Flow time from which on (upwards) the first denoiser is used and below which the second one is.

        ``None`` for a family with one denoiser. The pipeline chooses by *its* timestep, so a technique that
        runs a forward at another level may ask an expert for a level it was not trained on.
        """
        return None

    def largest(self, pipe: Pipeline) -> LatentSize | None:  # noqa: ARG002
        """Largest latent size with positions in the model; ``None`` if there is no limit."""
        return None

    def oversize(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:
        """Why the model has too few positions for a call with these arguments, ``None`` if it has enough."""
        largest = self.largest(pipe)
        if largest is None:
            return None
        size = self.call_size(pipe, arguments)
        if size.height <= largest.height and size.width <= largest.width:
            return None
        (height, width), limit = self.pixels(pipe, size), self.pixels(pipe, largest)
        return (
            f"{type(pipe).__name__} has positions for {limit[0]}x{limit[1]} pixels (height x width) at most, not "
            f"for {height}x{width}: choose a smaller height or width"
        )

    def refusal(self, pipe: Pipeline) -> str | None:  # noqa: ARG002
        """Why this pipeline's denoiser cannot run at another latent size, or ``None`` if it can."""
        return self.fixed

    def resizing_refusal(self, pipe: Pipeline) -> str | None:  # noqa: ARG002
        """Why the loop cannot continue with latents of another size between two steps, or ``None`` if it can."""
        return None

    def shift_tokens(self, pipe: Pipeline, size: LatentSize) -> int:  # noqa: ARG002
        """Number of tokens that the pipeline computes a resolution-dependent shift of its scheduler from."""
        return (size.frames or 1) * size.height * size.width // self.multiple**2

    def planned_levels(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:  # noqa: ARG002
        """Levels of the timesteps that ``scheduler`` is set to; ``None`` where its own tables tell them."""
        return None

    def sigmas(self, pipe: Pipeline, steps: int) -> list[float] | None:  # noqa: ARG002
        """Sigmas that a call of ``steps`` steps gives the scheduler, noise first; ``None`` if it leaves them to it."""
        return [1.0 - index / steps for index in range(steps)] if self.even_sigmas else None

    def clock_refusal(self, pipe: Pipeline) -> str | None:  # noqa: ARG002
        """Why the levels of this pipeline's scheduler do not fall from step to step, or ``None`` if they do."""
        return None

    def flows(self, pipe: Pipeline) -> bool:
        """Whether levels are flow times (``alpha + sigma = 1``), and not those of a variance-preserving table."""
        return self.prediction(pipe) in (Prediction.VELOCITY, Prediction.NEGATIVE_VELOCITY)


@dataclass(frozen=True)
class Adapter:
    """Description of one pipeline family.

    Args:
        family: short name, for messages (``"flux"``).
        pipelines: class names of the pipelines it covers.
        denoisers: attribute names of the denoisers (``("transformer", "transformer_2")``); those that a
            pipeline does not have are skipped.
        capabilities: instances of capability classes such as :class:`LatentLayout`.
        refused: class names of pipelines of the family that no technique supports, with the reason.
        missing: capability classes that these pipelines do not have, with the reason; the techniques that need one
            are refused, others are not.
        models: class names of the denoisers whose forwards the capabilities describe, in any pipeline.
        module: where :func:`hasten.load` finds the classes of saved pipelines.
    """

    family: str
    pipelines: tuple[str, ...]
    denoisers: tuple[str, ...] = ("transformer",)
    capabilities: tuple[object, ...] = ()
    refused: Mapping[str, str] | None = None
    missing: Mapping[type, str] | None = None
    models: tuple[str, ...] = ()
    module: str = "diffusers"

    def capability(self, kind: type[CapabilityT]) -> CapabilityT | None:
        """The family's implementation of ``kind``, or ``None`` if it has none."""
        return next((c for c in self.capabilities if isinstance(c, kind)), None)

"""Options of Video-Infinity."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hasten.extend import TechniqueConfig

__all__ = ["VideoInfinityConfig"]

Count = Annotated[int, Field(ge=1)]
Frames = Annotated[int, Field(ge=0)]
Level = Annotated[float, Field(ge=0.0, le=1.0)]


class VideoInfinityConfig(TechniqueConfig):
    """Options of the technique ``video_infinity``.

    Frames are counted in latent frames (temporal patches of the transformer where it has them).
    """

    mode: Literal["full", "dual", "dual_block"] = Field(
        "dual",
        description=(
            '"full" computes what the stock pipeline computes; "dual" lets every frame attend to a '
            'window around it and to a few frames of the whole video; "dual_block" lets every frame '
            "of a clip attend to the clip, its halos and those few frames, which is faster and "
            "depends on the clips."
        ),
    )
    clips: Count | None = Field(
        None,
        description="Number of clips; `null` is one per process, where the result does not depend on it.",
    )
    clip_frames: Count | None = Field(
        None, description="Instead of `clips`: the largest number of frames in a clip."
    )
    halo: Frames | None = Field(
        None, description="Frames of context on either side; `null` depends on the model."
    )
    global_frames: Frames | None = Field(
        None,
        description=(
            "Number of frames of the whole video that every frame attends to; `null` depends on the model."
        ),
    )
    global_sampling: Literal["linspace", "stride", "sink"] | tuple[Frames, ...] = Field(
        "linspace",
        description='How the global frames are chosen: "linspace", "stride", "sink" or a list of frames.',
    )
    bias: Annotated[float, Field(ge=0.0)] | None = Field(
        None,
        description=(
            "Added to the scores of the favoured scope: the global one early in the run, the local "
            "one later. `null` is 10 for diffusion models, as in the paper, and 3 for flow models."
        ),
    )
    switch: Literal["auto"] | Level = Field(
        "auto",
        description=(
            'The global scope is favoured from this noise level (flow time) upwards. "auto" is 0.836 '
            "for diffusion models (timestep 800 of 1,000); of flow models the local scope is favoured "
            "in all steps."
        ),
    )
    token_scale: bool = Field(
        False, description="Scale scores by the logarithm of the number of frames seen."
    )
    trained_frames: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Number of frames the model was trained with; `null` is that of its family."
    )
    rope: Literal["auto", "absolute", "dual"] = Field(
        "auto",
        description=(
            'Rotary positions of the global scope: true ones ("absolute"), or squeezed into the '
            'trained length ("dual"). "auto" is "absolute" in mode "full" and "dual" otherwise.'
        ),
    )
    text_scope: Literal["global", "clip"] = Field(
        "global",
        description=(
            "Of models with text tokens among the video tokens: one text stream for the whole video "
            '("global"), or one per clip ("clip"), which depends on the clips.'
        ),
    )
    exchange: Literal["auto", "input", "kv"] = Field(
        "auto",
        description=(
            'Send the inputs of attention layers ("input") or keys and values ("kv": twice the bytes, '
            'no repeated projection). "auto" is "kv" in mode "full" and on CPUs, "input" otherwise.'
        ),
    )
    norm_sync: bool = Field(
        True, description="Group-norm statistics over all clips; turn it off for ablations only."
    )
    conv_sync: bool = Field(
        True,
        description="Temporal convolutions include frames of neighbouring clips; turn it off for ablations only.",
    )
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None,
        description=(
            "Prompts along the time line instead of the prompt of the call, each for an equal share of the "
            "clips; at most one per clip."
        ),
    )
    data_ranks: Count = Field(
        1,
        description=(
            "Number of groups of processes that make different videos at the same time. The mesh of processes is "
            "`data_ranks` x `cfg_ranks` x `clip_ranks`."
        ),
    )
    cfg_ranks: Literal[1, 2] = Field(
        1, description="2 computes the two branches of guidance on two processes for the same clips."
    )
    clip_ranks: Count | None = Field(
        None, description="Number of processes that share the clips; `null` is all that are started."
    )
    checkpoint: str | None = Field(None, description="Folder of checkpoints, for resuming.")
    checkpoint_every: Count = Field(5, description="Steps between two checkpoints.")
    timeout_s: Annotated[float, Field(gt=0.0)] = Field(
        120.0,
        description=(
            "Seconds after which a silent process counts as lost. It must exceed the longest step and the "
            "decoding of the largest piece."
        ),
    )
    join_timeout_s: Annotated[float, Field(gt=0.0)] = Field(
        600.0, description="Seconds to wait for the other processes to load their model and join."
    )
    backend: Literal["gloo", "nccl"] | None = Field(
        None, description='"gloo" or "nccl"; `null` depends on the device.'
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clips is not None and self.clip_frames is not None:
            raise ValueError("clips and clip_frames exclude each other: remove one")
        if self.data_ranks > 1 and self.checkpoint is not None:
            raise ValueError(
                f"checkpoint keeps the state of one video, and data_ranks={self.data_ranks} makes several at a time: "
                "remove one"
            )
        if self.mode == "full":
            self._refuse_scopes()
        self._refuse_chance()
        return self

    def _refuse_chance(self) -> None:
        """The video must not depend on how many processes happen to be there."""
        if self.clips is not None or self.clip_frames is not None:
            return
        for name, value in (("mode", "dual_block"), ("text_scope", "clip"), ("prompts", self.prompts)):
            if value is not None and getattr(self, name) == value:
                raise ValueError(
                    f"{name}={value!r} depends on the clips, so they cannot follow the number of processes: "
                    "set clips or clip_frames"
                )

    def _refuse_scopes(self) -> None:
        for name in ("halo", "global_frames", "token_scale"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with mode='full', where every frame sees all: remove it, or set "
                    "mode='dual'"
                )
        for name, wrong in (("rope", "dual"), ("text_scope", "clip")):
            if getattr(self, name) == wrong:
                raise ValueError(f"{name}={wrong!r} is not what the stock pipeline computes; set mode='dual'")

    @property
    def rotary(self) -> str:
        """``"absolute"`` or ``"dual"``."""
        return self.rope if self.rope != "auto" else "absolute" if self.mode == "full" else "dual"

    def messages(self, device: str) -> str:
        """``"input"`` or ``"kv"``, for a kind of device.

        Between processors of one machine bytes are cheap and projections are not.
        """
        if self.exchange != "auto":
            return self.exchange
        return "kv" if self.mode == "full" or device == "cpu" else "input"

"""Several prompts along the time line of a video."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from hasten.extend import DenoiserCall, FrameMixing, RunCall, UnsupportedError

__all__ = ["capture_prompt", "encode_prompts"]


class _PromptKnownError(Exception):
    """Ends a run at its first forward, when the encoded prompt is known."""

    def __init__(self, text: Mapping[str, Any]) -> None:
        self.text = text


_capturing: ContextVar[FrameMixing | None] = ContextVar("hasten_encode_prompts", default=None)


def encode_prompts(
    call: RunCall, prompts: Sequence[str], proceed: Callable[[RunCall], Any]
) -> list[Mapping[str, Any]]:
    """Prompt arguments of the denoiser for each of ``prompts``, encoded by the pipeline.

    The pipeline runs up to its first forward; the state of its generator is restored.

    Raises:
        UnsupportedError: the call has embeddings instead of a prompt.
    """
    if call.arguments.get("prompt_embeds") is not None:
        raise UnsupportedError(
            "prompts along the time line are texts; the call has prompt_embeds instead of a prompt"
        )
    mixing = call.target.capability(FrameMixing)
    generator = call.arguments["generator"]
    first = generator[0] if isinstance(generator, (list, tuple)) else generator
    state = first.get_state()
    heard: dict[str, Mapping[str, Any]] = {}
    token = _capturing.set(mixing)
    try:
        for prompt in dict.fromkeys(prompts):
            try:
                proceed(call.replace_arguments({"prompt": prompt}))
            except _PromptKnownError as answer:
                heard[prompt] = answer.text
            finally:
                first.set_state(state)
    finally:
        _capturing.reset(token)
    return [heard[prompt] for prompt in prompts]


def capture_prompt(call: DenoiserCall) -> None:
    """Within :func:`encode_prompts`, end the run with the prompt arguments of this forward; otherwise do nothing."""
    mixing = _capturing.get()
    if mixing is not None:
        raise _PromptKnownError(
            {name: call.kwargs[name] for name in mixing.text if call.kwargs.get(name) is not None}
        )

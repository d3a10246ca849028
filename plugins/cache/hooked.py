"""diffusers' hooks on one denoiser for one run: on the modules only while a forward is under way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from hasten.extend import BlockOutputs, UnsupportedError
from hasten.plugins.cache.blocks import known_blocks
from hasten.plugins.cache.config import CacheConfig, Situation

__all__ = ["Hooked"]

_SET = ("forward", "_diffusers_hook")
"""Attributes of a module that diffusers' hooks set."""
_NO_LEVEL = 2000
"""A level outside of every range: nothing is reused."""
_turns: WeakKeyDictionary[nn.Module, RLock] = WeakKeyDictionary()
"""Pipelines in different threads may share a denoiser, and hooks are on the modules: one forward at a time."""


class Hooked:
    """A cache of diffusers for one denoiser and one run.

    Its memory is kept for each branch of guidance, and dropped when the size of the forwards changes.

    Args:
        model: the denoiser.
        config: which cache.
        situation: of model and call; its ``timestep`` is replaced.
        outputs: what the adapter says of blocks that diffusers does not know.

    Raises:
        UnsupportedError: the cache finds no layer that it knows.
    """

    def __init__(
        self, model: nn.Module, config: CacheConfig, situation: Situation, outputs: BlockOutputs | None
    ) -> None:
        from diffusers.hooks import HookRegistry

        self._model = model
        self._level = 0.0
        self._shape: object = None
        self._warm: set[str] = set()
        self._memories: dict[tuple[str, int], Any] = {}
        self.computed = 0
        """Hooked layers that the last forward computed."""
        before = {module: _attributes(module) for module in model.modules()}
        for module in before:
            vars(module).pop("_diffusers_hook", None)
        try:
            with known_blocks(model, outputs):
                config.apply(model, replace(situation, timestep=self._timestep))
            HookRegistry.check_if_exists_or_initialize(model)
            self._set = {
                module: _attributes(module) for module in before if "_diffusers_hook" in vars(module)
            }
        finally:
            _restore(before)
        registries = {module: held["_diffusers_hook"] for module, held in self._set.items()}
        self._hooks = [(m, hook) for m, registry in registries.items() for hook in registry.hooks.values()]
        self.layers = sum(module is not model for module, _ in self._hooks)
        """How many layers have a hook."""
        if not self.layers:
            raise UnsupportedError(
                f"cache: kind={config.kind!r} finds no layer that it knows in {type(model).__name__}; choose another kind"
            )
        for module, hook in self._hooks:
            if module is not model:
                hook.fn_ref.original_forward = self._counting(hook)

    @contextmanager
    def forward(self, branch: str, level: float) -> Iterator[None]:
        """Hooks on, for one forward of a branch of guidance at a level in [0, 1]."""
        with _turns.setdefault(self._model, RLock()):
            self._level, self._branch, self.computed = level, branch, 0
            before = {module: _attributes(module) for module in self._set}
            _restore(self._set)
            watch = self._model.register_forward_pre_hook(self._begin, with_kwargs=True)
            try:
                yield
                self._warm.add(branch)
            finally:
                watch.remove()
                self._name_branch(None)
                _restore(before)

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the denoiser computes on now, whatever other techniques made of it, decides what is remembered."""
        shape = next((_shape(value) for value in (*args, *kwargs.values()) if _shape(value)), None)
        if shape != self._shape:
            self._shape = shape
            self._warm.clear()
            self._memories.clear()
            for module, hook in self._hooks:
                if hook._is_stateful:
                    hook.reset_state(module)
        self._name_branch(self._branch)
        for place, (_, hook) in enumerate(self._hooks):
            if hasattr(hook, "state"):  # one memory for all branches, which would mix them
                hook.state = self._memories.setdefault((self._branch, place), type(hook.state)())

    def _name_branch(self, branch: str | None) -> None:
        from diffusers.hooks.hooks import CacheContext, _set_cache_context

        _set_cache_context(self._model, None if branch is None else CacheContext(branch))

    def _timestep(self) -> float:
        return 1000 * self._level if self._branch in self._warm else _NO_LEVEL

    def _counting(self, hook: Any) -> Callable[..., Any]:
        original, metadata = hook.fn_ref.original_forward, getattr(hook, "_metadata", None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.computed += 1
            output = original(*args, **kwargs)
            text = getattr(metadata, "return_encoder_hidden_states_index", None)
            if text is None or not isinstance(output, tuple) or output[text] is not None:
                return output
            # The last block of StableDiffusion3 drops the text, which nobody reads after it; the hooks expect it.
            given = metadata._get_parameter_from_args_kwargs("encoder_hidden_states", args, kwargs)
            return (*output[:text], given, *output[text + 1 :])

        return forward


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: vars(module)[name] for name in _SET if name in vars(module)}


def _restore(attributes: dict[nn.Module, dict[str, Any]]) -> None:
    for module, held in attributes.items():
        for name in _SET:
            if name in held:
                vars(module)[name] = held[name]
            else:
                vars(module).pop(name, None)


def _shape(value: Any) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return tuple(tuple(part.shape) for part in value)
    return None

"""diffusers' cache hooks for one denoiser and one run, without touching the denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from hasten.extend import BlockOutputs, UnsupportedError, clone_tree, hooks_on, keeps_state
from hasten.plugins.cache.blocks import known_blocks
from hasten.plugins.cache.config import CacheConfig, Situation

__all__ = ["Hooked"]

_NO_LEVEL = 2000
"""A level outside of every range: nothing is reused."""
ROOT = ""
"""Name of the denoiser itself among its modules."""


class Hooked:
    """A cache of diffusers for one denoiser and one run.

    diffusers puts its hooks on a twin of the denoiser that shares all weights; here they are called around the layers
    of the denoiser itself. Memory is kept for each branch of guidance, and dropped when the size changes.

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
        self._model = model
        self._branch = ""
        self._level = 0.0
        self._begun = False
        self._shape: object = None
        self._warm: set[str] = set()
        self._memories: dict[tuple[str, str], Any] = {}
        self.computed = 0
        """Layers with a hook that the last forward computed."""
        twin = clone_tree(model)
        with known_blocks(model, outputs):
            config.apply(twin, replace(situation, timestep=self._timestep))
        self._hooks = {
            name: hook for name, module in twin.named_modules() for hook in hooks_on(module).values()
        }
        self.layers = tuple(name for name in self._hooks if name != ROOT)
        """Names of the layers with a hook."""
        if not self.layers:
            raise UnsupportedError(f"it finds no layer that it knows in {type(model).__name__}")

    def forward(
        self, branch: str, level: float, compute: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """One forward of the denoiser.

        Args:
            branch: of guidance.
            level: noise level in [0, 1].
            compute: computes the denoiser.
            arguments: of ``compute``.
        """
        self._branch, self._level, self._begun, self.computed = branch, level, False, 0
        root = self._hooks.get(ROOT)
        if root is None:
            output = compute(**arguments)
        else:
            self._begin(arguments.values())
            output = self._through(root, self._model, compute, (), arguments)
        self._warm.add(branch)
        return output

    def layer(
        self, name: str, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One call of a layer, which the cache may answer without it."""
        if not self._begun:
            self._begin((*args, *kwargs.values()))
        hook = self._hooks[name]

        def compute(*args: Any, **kwargs: Any) -> Any:
            self.computed += 1
            return _with_text(inner(*args, **kwargs), hook, args, kwargs)

        return self._through(hook, self._model.get_submodule(name), compute, args, kwargs)

    def _through(
        self, hook: Any, module: nn.Module, compute: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        hook.fn_ref.original_forward = compute
        try:
            return hook.new_forward(module, *args, **kwargs)
        finally:
            hook.fn_ref.original_forward = None

    def _begin(self, values: Any) -> None:
        """Take out the memory of this branch, or forget everything if the size is another than before."""
        from diffusers.hooks.hooks import CacheContext, StateManager

        self._begun = True
        shape = next(filter(None, map(_shape, values)), None)
        if shape != self._shape:
            self._shape = shape
            self._warm.clear()
            self._memories.clear()
            for hook in self._hooks.values():
                if keeps_state(hook):
                    hook.reset_state(None)
        for name, hook in self._hooks.items():
            for value in vars(hook).values():
                if isinstance(value, StateManager):
                    value.set_context(CacheContext(self._branch))
            if hasattr(hook, "state"):  # one memory for all branches, which would mix them
                hook.state = self._memories.setdefault((self._branch, name), type(hook.state)())

    def _timestep(self) -> float:
        return 1000 * self._level if self._branch in self._warm else _NO_LEVEL


def _with_text(output: Any, hook: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``output`` with the text's tokens, which the last block of StableDiffusion3 drops and the hooks expect.

    Nobody reads them after that block.
    """
    metadata = getattr(hook, "_metadata", None)
    text = getattr(metadata, "return_encoder_hidden_states_index", None)
    if metadata is None or text is None or not isinstance(output, tuple) or output[text] is not None:
        return output
    given = metadata._get_parameter_from_args_kwargs("encoder_hidden_states", args, kwargs)
    return (*output[:text], given, *output[text + 1 :])


def _shape(value: Any) -> object:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return tuple(tuple(part.shape) for part in value)
    return None

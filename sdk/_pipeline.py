"""A pipeline and its scheduler as the host sees them: the classes of diffusers, and others with the same attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Pipeline", "Scheduler"]


class Pipeline(Protocol):
    """A pipeline: a ``DiffusionPipeline`` of diffusers, or an object with the same attributes.

    The components (``transformer``, ``vae``, ...) and their names depend on the family; its adapter knows them.
    ``DiffusionPipeline`` declares none of its components and no ``__call__``, so type checkers do not take it for this
    protocol. Public functions and code that calls a pipeline take ``Any``.
    """

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def components(self) -> Mapping[str, Any]:
        """Name -> component."""


class Scheduler(Protocol):
    """A scheduler of diffusers, or an object with the same attributes; further ones depend on its class."""

    timesteps: Tensor
    """Of the run it was last set to, the noisiest first."""

    def __getattr__(self, name: str) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None: ...

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """Prepare a run."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One step of the solver."""

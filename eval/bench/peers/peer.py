"""What a user would pick instead of hasten, as the benchmark sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

from hasten.extend import ConfigError, Target, suggestion

__all__ = ["PEERS_EXTRA", "Peer", "Position", "choose_peers", "denoiser_of", "missing", "own_forwards"]

PEERS_EXTRA = "hasten[peers]"


@dataclass(frozen=True)
class Position:
    """One setting of a peer.

    Args:
        label: what is written beside its point.
        options: of the peer; plain values.
        recommended: whether it is what the peer's documentation recommends; the others are the grid of its dial.
        halved: whether it runs from half of the reference's steps too.
    """

    label: str
    options: Mapping[str, Any]
    recommended: bool = False
    halved: bool = True


class Peer(ABC):
    """A package, or one method of it.

    Attributes:
        name: on the command line and in tables.
        package: the distribution that it comes with.
        about: one line: what it reuses, and what ``recommended`` and the grid are.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    about: ClassVar[str]

    @property
    def installed(self) -> str | None:
        """Version of its package; ``None`` without it."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    @abstractmethod
    def refusal(self, pipe: Any) -> str | None:
        """Why it can't work on a pipeline; ``None`` if it can."""

    @abstractmethod
    def positions(self, pipe: Any) -> Sequence[Position]:
        """Its recommended settings and the grid of its dial, from careful to bold."""

    @abstractmethod
    def attached(self, pipe: Any, options: Mapping[str, Any], steps: int) -> AbstractContextManager[None]:
        """The pipeline with this peer for the length of a ``with`` block, its memory empty at the beginning.

        Args:
            pipe: the stock pipeline; it is as before at the end.
            options: of a :class:`Position`.
            steps: denoising steps of the calls to come.
        """


def denoiser_of(pipe: Any) -> Any:
    """The pipeline's first denoiser, a module."""
    return next(iter(Target.of(pipe).denoisers.values()))


def choose_peers(names: Sequence[str] | None) -> tuple[Peer, ...]:
    """The peers of these names; all of them without names.

    Raises:
        ConfigError: names the nearest peer that exists.
    """
    from hasten.eval.bench.peers.diffusers_caches import FasterCache, FirstBlockCache, Pyramid, TaylorSeer
    from hasten.eval.bench.peers.packages import CacheDit, DeepCache, ToMe

    peers: tuple[Peer, ...] = (
        FirstBlockCache(),
        Pyramid(),
        TaylorSeer(),
        FasterCache(),
        CacheDit(),
        DeepCache(),
        ToMe(),
    )
    every = {peer.name: peer for peer in peers}
    for name in names or ():
        if name not in every:
            raise ConfigError(
                f"--peers: no peer is called {name!r}{suggestion(name, every)} Known: {', '.join(every)}."
            )
    return tuple(every[name] for name in names or every)


def missing(peers: Sequence[Peer]) -> str | None:
    """Names the packages that are not installed and how to get them; ``None`` if all are."""
    lacking = dict.fromkeys(peer.package for peer in peers if peer.installed is None)
    if not lacking:
        return None
    verb = "is" if len(lacking) == 1 else "are"
    return f"{', '.join(lacking)} {verb} not installed and left out: pip install '{PEERS_EXTRA}'"


@contextmanager
def own_forwards(model: Any) -> Iterator[None]:
    """A module tree whose modules have the ``forward`` of before at the end.

    Packages that replace it put the bound method back as an attribute, which is not the same as none.
    """
    before = {module: vars(module).get("forward") for module in model.modules()}
    try:
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward

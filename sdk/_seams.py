"""The seams of one technique, with its part of the undo journal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hasten._errors import UnsupportedError
from hasten._run import RunCall

if TYPE_CHECKING:
    from hasten._attention import AttentionHandler
    from hasten._control import ControlHandler
    from hasten._denoiser import DenoiserHandler
    from hasten._journal import OwnedJournal
    from hasten._target import Target

__all__ = [
    "AttentionEntry",
    "CacheFactory",
    "ModuleEntry",
    "ModuleHandler",
    "PromptHandler",
    "RunHandler",
    "SchedulerFactory",
    "SeamTable",
    "Seams",
]

RunHandler = Callable[[RunCall, Callable[[RunCall], Any]], Any]
SchedulerFactory = Callable[[Any, RunCall], Any]
CacheFactory = Callable[[Any, RunCall], Any]
PromptHandler = Callable[[tuple[str, ...], RunCall], Sequence[str] | None]

ModuleHandler = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]

HandlerT = TypeVar("HandlerT")


@dataclass(frozen=True)
class AttentionEntry:
    """An attention handler and the layers it wants, ``None`` for every attention layer of every denoiser."""

    handler: AttentionHandler
    layers: frozenset[str] | None
    divides: bool = False
    """Whether it stands outside of those that do not, in whatever order the techniques are listed."""


@dataclass(frozen=True)
class ModuleEntry:
    """A handler of one module inside a denoiser, by qualified name."""

    name: str
    handler: ModuleHandler


@dataclass(frozen=True)
class Chain(Generic[HandlerT]):
    """Handlers of one seam with their owners, kept in the order the techniques are listed."""

    order: tuple[str, ...]
    items: tuple[tuple[str, HandlerT], ...] = ()

    def plus(self, owner: str, handler: HandlerT) -> Chain[HandlerT]:
        """This chain with one more handler, in its owner's place; those that divide are outside of the others."""

        def place(item: tuple[str, HandlerT]) -> tuple[bool, int]:
            return not getattr(item[1], "divides", False), self.order.index(item[0])

        return Chain(self.order, tuple(sorted((*self.items, (owner, handler)), key=place)))

    def mapped(self, change: Callable[[str, HandlerT], HandlerT]) -> Chain[HandlerT]:
        """This chain with ``change(owner, handler)`` in the place of every handler."""
        return Chain(self.order, tuple((owner, change(owner, item)) for owner, item in self.items))

    def without(self, owner: str) -> Chain[HandlerT]:
        """This chain without the handlers of ``owner``."""
        return Chain(self.order, tuple(item for item in self.items if item[0] != owner))


@dataclass
class SeamTable:
    """Every handler of an acceleration. A run takes the chains it starts with; they are immutable.

    Args:
        order: names of the techniques as listed, outermost first.
    """

    order: tuple[str, ...]
    run: Chain[RunHandler] = field(init=False)
    control: Chain[ControlHandler] = field(init=False)
    denoiser: Chain[DenoiserHandler] = field(init=False)
    attention: Chain[AttentionEntry] = field(init=False)
    modules: Chain[ModuleEntry] = field(init=False)
    scheduler: Chain[SchedulerFactory] = field(init=False)
    prompt: Chain[PromptHandler] = field(init=False)
    cache: Chain[CacheFactory] = field(init=False)

    def __post_init__(self) -> None:
        for kind in self.kinds():
            setattr(self, kind, Chain(self.order))

    @staticmethod
    def kinds() -> tuple[str, ...]:
        """Names of the seams, from the outside in."""
        return ("run", "prompt", "scheduler", "cache", "control", "denoiser", "modules", "attention")

    def remove(self, owner: str) -> None:
        """Remove everything that ``owner`` registered."""
        for kind in self.kinds():
            setattr(self, kind, getattr(self, kind).without(owner))

    def describe(self) -> tuple[str, ...]:
        """One line per seam in use, owners from the outside in."""
        lines = []
        for kind in self.kinds():
            owners = list(dict.fromkeys(owner for owner, _ in getattr(self, kind).items))
            if owners:
                lines.append(f"{kind}: {' > '.join(owners)}")
        return tuple(lines)


def submodule(target: Target, name: str) -> Any:
    """The module with a qualified name that starts with the denoiser.

    Raises:
        UnsupportedError: there is none.
    """
    from hasten._compat import unwrapped

    denoiser, _, path = name.partition(".")
    try:
        return unwrapped(target.denoisers[denoiser]).get_submodule(path)
    except (KeyError, AttributeError) as error:
        raise UnsupportedError(f"{target.name} has no module {name!r}") from error


class Seams:
    """The seams as one technique sees them. Everything registered here is removed with the technique.

    Args:
        owner: the technique's name.
        target: the pipeline.
        table: where handlers go.
        journal: for structural edits, which last until the technique is removed.
    """

    def __init__(self, owner: str, target: Target, table: SeamTable, journal: OwnedJournal) -> None:
        self.owner = owner
        self.journal = journal
        self._target = target
        self._table = table

    def run(self, handler: RunHandler) -> None:
        """Put ``handler(call, proceed) -> result`` around the pipeline call.

        The handler may change arguments (``proceed(call.replace_arguments({...}))``) and the result. It may proceed
        any number of times; each is a separate run with its own clock and state.
        """
        self._table.run = self._table.run.plus(self.owner, handler)

    def denoiser(self, handler: DenoiserHandler) -> None:
        """Put ``handler(call, proceed) -> output`` around every forward of every denoiser.

        Raises:
            UnsupportedError: the family has neither latent layout nor scale schedule, which the run clock needs.
        """
        _ = self._target.moments
        self._table.denoiser = self._table.denoiser.plus(self.owner, handler)

    def control(self, handler: ControlHandler) -> None:
        """Put ``handler(call, proceed) -> features`` around every forward of the pipeline's control network.

        Raises:
            UnsupportedError: the family has no control network that runs in every step.
        """
        from hasten._adapters.control import ControlNetwork

        self._target.capability(ControlNetwork)
        self._table.control = self._table.control.plus(self.owner, handler)

    def attention(
        self, handler: AttentionHandler, layers: Iterable[str] | None = None, *, divides: bool = False
    ) -> None:
        """Put ``handler(call, proceed) -> Tensor`` around the scaled-dot-product attention of some layers.

        Args:
            handler: gets query, key and value after normalisation and rotary embedding, (B, heads, tokens, dim).
            layers: qualified names (``"transformer.transformer_blocks.0.attn"``); ``None`` is every attention layer.
            divides: whether the handler divides the keys of a layer into segments (:func:`attend_segment`). It is
                then outside of those that do not, in whatever order the techniques are listed.

        Raises:
            UnsupportedError: a named layer does not exist or is not an attention layer, or the family has no layout.
        """
        from hasten._attention import check_layers

        _ = self._target.layout
        chosen = None if layers is None else frozenset(layers)
        check_layers(self._target, chosen)
        self._table.attention = self._table.attention.plus(
            self.owner, AttentionEntry(handler, chosen, divides)
        )

    def module(self, name: str, handler: ModuleHandler) -> None:
        """Put ``handler(inner, args, kwargs) -> output`` around the calls of one module inside a denoiser.

        Args:
            name: qualified name, starting with the denoiser (``"unet.transformer_in.norm"``).
            handler: ``inner(*args, **kwargs)`` computes the module; it may be called once, several times or not at all.

        Raises:
            UnsupportedError: there is no such module, or the denoiser is compiled.
        """
        from hasten._attention import refuse_compiled

        refuse_compiled(self._target)
        submodule(self._target, name)
        self._table.modules = self._table.modules.plus(self.owner, ModuleEntry(name, handler))

    def scheduler(self, factory: SchedulerFactory) -> None:
        """Replace the pipeline's scheduler by ``factory(scheduler, call)`` during every run."""
        self._table.scheduler = self._table.scheduler.plus(self.owner, factory)

    def cache(self, factory: CacheFactory) -> None:
        """Give every run ``factory(cache, call)`` as its key-value cache; ``cache`` is what the call would
        use, ``None``
        for the pipeline's own.

        Raises:
            UnsupportedError: the family does not generate scale by scale.
        """
        from hasten._adapters.base import ScaleSchedule

        self._target.capability(ScaleSchedule)
        self._table.cache = self._table.cache.plus(self.owner, factory)

    def prompt(self, handler: PromptHandler) -> None:
        """Read or replace the text before it is encoded: ``handler(texts, call) -> texts or None``.

        ``texts`` is empty if the caller passed embeddings instead of text.
        """
        self._table.prompt = self._table.prompt.plus(self.owner, handler)

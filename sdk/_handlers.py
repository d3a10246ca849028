"""The handlers of techniques as a run calls them: what one raises or returns wrongly names its technique.

An error that came out of ``proceed`` is the pipeline's (or the user's callback's) and passes through as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from hasten._attention import AttentionCall
from hasten._control import ControlCall
from hasten._culprit import Culprit, Faults, InRun
from hasten._denoiser import DenoiserCall
from hasten._pipeline import Scheduler
from hasten._run import RunCall
from hasten._seams import AttentionEntry, ModuleEntry, SeamTable

if TYPE_CHECKING:
    from hasten._seams import Chain

__all__ = ["guarded"]

_Seen = list[type]
"""Types of what ``proceed`` gave; tensors are not kept."""


def guarded(table: SeamTable, culprits: Mapping[str, Culprit], faults: Faults) -> SeamTable:
    """A snapshot of ``table`` with every handler guarded.

    Args:
        table: what techniques registered.
        culprits: whom to name, by technique.
        faults: told of what handlers raise.

    Chains are immutable, so that removing a technique in mid-run takes effect with the next run.
    """
    guards: dict[str, Callable[[Any, Culprit], Any]] = {
        "run": _run,
        "prompt": _prompt,
        "scheduler": _scheduler,
        "cache": _cache,
        "control": _control,
        "denoiser": _denoiser,
        "modules": _module,
        "attention": _attention,
    }
    in_run = {owner: InRun(culprit.title, faults) for owner, culprit in culprits.items()}
    snapshot = SeamTable(table.order)
    for kind in table.kinds():
        chain: Chain[Any] = getattr(table, kind)
        setattr(snapshot, kind, chain.mapped(partial(_guarded, guards[kind], in_run)))
    return snapshot


def _guarded(
    guard: Callable[[Any, Culprit], Any], culprits: Mapping[str, Culprit], owner: str, handler: Any
) -> Any:
    return guard(handler, culprits[owner])


class _Seam(NamedTuple):
    """One kind of ``handler(call, proceed)``."""

    kind: type[Any]
    """Of the call, which ``proceed`` takes too."""
    name: Callable[[Any], str]
    """What the handler is called in messages, by the call."""
    fault: Callable[[Any, Any, _Seen], str | None]
    """``(call, answer, types of what proceed gave) -> what to return instead``, ``None`` where the answer is right."""


def _around(culprit: Culprit, seam: _Seam, handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler of a technique, guarded."""

    def handle(call: Any, inner: Callable[[Any], Any]) -> Any:
        place = seam.name(call)
        passed: list[BaseException] = []
        seen: _Seen = []

        def proceed(changed: object) -> Any:
            if not isinstance(changed, seam.kind):
                wanted = f"proceed(call), with the {seam.kind.__name__} it was given or a changed one"
                raise culprit.broke(f"called proceed({type(changed).__name__}) in {place}; call {wanted}")
            try:
                answer = inner(changed)
            except BaseException as error:
                passed.append(error)
                raise
            seen.append(type(answer))
            return answer

        with culprit.during(place, passed):
            answer = handler(call, proceed)
        if wanted := seam.fault(call, answer, seen):
            raise culprit.returned(answer, place, wanted)
        return answer

    return handle


# --- run: the pipeline's result


def _result_fault(call: RunCall, answer: object, seen: _Seen) -> str | None:
    wanted = "the result of proceed(call), or one of the same type"
    if type(answer) in seen:
        return None
    if answer is None or inspect.isgenerator(answer) or inspect.iscoroutine(answer):
        return wanted
    if call.arguments.get("return_dict") is False:
        return None if isinstance(answer, tuple) else f"{wanted}: the call has return_dict=False, so a tuple"
    if not seen:
        return wanted if isinstance(answer, (bool, int, float, str, bytes)) else None
    from diffusers.utils import BaseOutput

    return None if isinstance(answer, BaseOutput) else f"{wanted}: a {seen[-1].__name__}"


def _run(handler: Callable[..., Any], culprit: Culprit) -> Any:
    return _around(culprit, _Seam(RunCall, lambda _: "its run handler", _result_fault), handler)


# --- denoiser and attention: their seams look at shapes and types of tensors


def _denoiser(handler: Callable[..., Any], culprit: Culprit) -> Any:
    def name(call: DenoiserCall) -> str:
        return f"its denoiser handler at step {call.step.index} of {call.denoiser}"

    return _around(culprit, _Seam(DenoiserCall, name, _output_fault), handler)


def _output_fault(call: DenoiserCall, output: object, seen: _Seen) -> str | None:
    as_asked = isinstance(output, tuple) is (call.kwargs.get("return_dict") is False)
    if not seen or type(output) in seen or as_asked:
        return None
    return f"the same kind of output as proceed(call), a {seen[-1].__name__}: change it with call.with_sample"


def _control(handler: Any, culprit: Culprit) -> Any:
    def fault(call: ControlCall, features: Any, seen: _Seen) -> str | None:  # noqa: ARG001
        return (
            None
            if not seen or type(features) in seen
            else f"what proceed(call) returns, a {seen[-1].__name__}"
        )

    return _around(culprit, _Seam(ControlCall, lambda _: "its control handler", fault), handler)


def _attention(entry: AttentionEntry, culprit: Culprit) -> AttentionEntry:
    def name(call: AttentionCall) -> str:
        return f"its attention handler at {call.layer}, step {call.step.index}"

    handler = _around(culprit, _Seam(AttentionCall, name, lambda *_: None), entry.handler)
    return replace(entry, handler=handler)


# --- modules


def _module(entry: ModuleEntry, culprit: Culprit) -> ModuleEntry:
    place = f"its handler of module {entry.name}"

    def handle(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        passed: list[BaseException] = []
        seen: set[type] = set()

        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                output = inner(*args, **kwargs)
            except BaseException as error:
                passed.append(error)
                raise
            seen.add(type(output))
            return output

        with culprit.during(place, passed):
            output = entry.handler(watched, args, kwargs)
        if seen and type(output) not in seen:
            names = " or ".join(sorted(kind.__name__ for kind in seen))
            raise culprit.returned(output, place, f"what the module returns: a {names}")
        return output

    return ModuleEntry(entry.name, handle)


# --- what is handed to the pipeline before it runs


def _prompt(handler: Callable[..., object], culprit: Culprit) -> Any:
    def handle(texts: tuple[str, ...], call: RunCall) -> Sequence[str] | None:
        with culprit.during("its prompt handler"):
            answer = handler(texts, call)
        if answer is None:
            return None
        if not isinstance(answer, (list, tuple)) or not all(isinstance(text, str) for text in answer):
            raise culprit.returned(answer, "its prompt handler", "a list of texts, or None to keep them")
        return answer

    return handle


def _scheduler(factory: Callable[..., object], culprit: Culprit) -> Any:
    def make(scheduler: Scheduler, call: RunCall) -> Any:
        with culprit.during("its scheduler factory"):
            made = factory(scheduler, call)
        if not all(callable(getattr(made, name, None)) for name in ("set_timesteps", "step")):
            wanted = "the scheduler it received, or another one with 'set_timesteps' and 'step'"
            raise culprit.returned(made, "its scheduler factory", wanted)
        return made

    return make


def _cache(factory: Callable[..., object], culprit: Culprit) -> Any:
    def make(cache: object, call: RunCall) -> Any:
        from hasten._adapters.kv_cache import KVCache

        with culprit.during("its cache factory"):
            made = factory(cache, call)
        if made is not None and not isinstance(made, KVCache):
            wanted = "a hasten.extend.KVCache, or None for the pipeline's own"
            raise culprit.returned(made, "its cache factory", wanted)
        return made

    return make

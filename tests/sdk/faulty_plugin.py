"""A third party's module whose technique misbehaves in a chosen place, in a chosen way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hasten

RAISES: dict[str, type[BaseException]] = {
    "exception": ValueError,
    "exit": SystemExit,
    "cancelled": asyncio.CancelledError,
}
RETURNS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "object": object,
    "objects": lambda: [object()],
    "generator": lambda: (item for item in [object()]),
}


def misbehave(fault: str) -> Any:
    if fault in RAISES:
        raise RAISES[fault]("broken on purpose")
    return RETURNS[fault]()


class FaultyConfig(hasten.TechniqueConfig):
    place: str = ""
    fault: str = "none"


class Faulty(hasten.Technique[FaultyConfig]):
    name = "faulty"
    summary = "misbehaves where it is told to"
    config_class = FaultyConfig

    def __new__(cls, config: FaultyConfig) -> Any:
        if config.place == "__new__":
            return misbehave(config.fault)
        return super().__new__(cls)

    def __init__(self, config: FaultyConfig) -> None:
        if config.place == "__init__":
            misbehave(config.fault)
            return  # without super().__init__: the options are lost
        super().__init__(config)

    def at(self, place: str, right: Callable[[], Any]) -> Any:
        return misbehave(self.config.fault) if self.config.place == place else right()

    def claims(self, target: Any) -> Any:
        return self.at("claims", list)

    def check(self, target: Any) -> Any:
        return self.at("check", list)

    def check_call(self, target: Any, arguments: Any) -> Any:
        return self.at("check_call", list)

    def ranks_per_call(self, world: int) -> Any:
        return self.at("ranks_per_call", lambda: 1)

    def review(self, steps: Any) -> Any:
        return self.at("review", list)

    def forecast(self, target: Any, arguments: Any, before: Any) -> Any:
        return self.at("forecast", lambda: None)

    def attach(self, target: Any, seams: Any) -> Any:
        name, module = next(iter(target.denoisers.items()))
        seams.journal.set_attribute(module, "touched", True)
        seams.journal.wrap_callable(module, "enable_gradient_checkpointing", self._wrapper)
        seams.run(lambda call, proceed: self.at("run", lambda: proceed(call)))
        seams.prompt(lambda texts, call: self.at("prompt", lambda: None))
        seams.scheduler(lambda scheduler, call: self.at("scheduler", lambda: scheduler))
        seams.denoiser(lambda call, proceed: self.at("denoiser", lambda: proceed(call)))
        seams.attention(lambda call, proceed: self.at("attention", lambda: proceed(call)))
        blocks = f"{name}.transformer_blocks.0"
        seams.module(blocks, lambda inner, args, kwargs: self._around_module(inner, args, kwargs))
        return self.at("attach", lambda: None)

    def _wrapper(self, below: Any) -> Any:
        return self.at("wrapper", lambda: below)

    def _around_module(self, inner: Any, args: Any, kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        return self.at("module", lambda: output)


@hasten.hookimpl
def hasten_register_techniques(register: Any) -> None:
    register(Faulty)

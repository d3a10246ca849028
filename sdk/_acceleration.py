"""`accelerate` and `plan`: attaching techniques to a pipeline, all or none, and removing them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from hasten._attachment import Attachment
from hasten._config import Config, ConfigLike
from hasten._errors import ConfigError, ConflictError, UnsupportedError, suggestion
from hasten._plan import Plan, PlannedTechnique, make_plan
from hasten._seams import Seams
from hasten._subclass import accelerated_by, make_subclass, set_class
from hasten._target import Target

if TYPE_CHECKING:
    from hasten._enabled import Enabled
    from hasten._report import Report
    from hasten._run import Run

__all__ = ["Acceleration", "accelerate", "acceleration_of", "plan", "restore"]


def plan(pipe: Any, config: ConfigLike, *, allow_unverified: bool = False, **call: Any) -> Plan:
    """Run the checks of :func:`accelerate` and forecast a call, without changing ``pipe``.

    Args:
        pipe: a diffusers pipeline of a known family.
        config: see :meth:`hasten.Config.of`.
        allow_unverified: see :func:`accelerate`.
        **call: arguments of the pipeline call to forecast (``num_inference_steps=28, height=1024``); the pipeline's
            defaults fill in the rest.

    Raises:
        ConfigError: the configuration is wrong.
        ConflictError: techniques conflict.
        UnsupportedError: the pipeline cannot be accelerated like this.
    """
    return make_plan(Target.of(pipe, allow_unverified=allow_unverified), Config.of(config), call)[0]


def accelerate(pipe: Any, config: ConfigLike, *, allow_unverified: bool = False, **call: Any) -> Acceleration:
    """Enable techniques on an existing pipeline; call the pipeline as before.

    Args:
        pipe: a diffusers pipeline of a known family.
        config: see :meth:`hasten.Config.of`; the name of a preset is enough (``"balanced"``).
        allow_unverified: accept a pipeline without an adapter if one describes its denoiser. The plan marks it
            *unverified*, and the first forward of every call is compared with stock before anything else.
        **call: arguments of later calls (``height=512, width=512``), for presets, which depend on the size, and for
            forecasts; the pipeline's defaults fill in the rest.

    Returns:
        A handle for reports and for restoring the pipeline. As a context manager, it restores the pipeline on exit.

    Raises:
        ConfigError: the configuration is wrong.
        ConflictError: techniques conflict, or the pipeline is already accelerated.
        UnsupportedError: the pipeline cannot be accelerated like this.
    """
    if accelerated_by(pipe) is not None:
        raise ConflictError(
            f"this {type(pipe).__name__} is already accelerated; call hasten.restore(pipe) first, or pass "
            f"all techniques to one accelerate() call"
        )
    target = Target.of(pipe, allow_unverified=allow_unverified)
    made, techniques = make_plan(target, Config.of(config), call, whole=False)
    return Acceleration(target, made, techniques, call)


def acceleration_of(pipe: Any) -> Acceleration | None:
    """The handle that :func:`accelerate` returned for a pipeline.

    Args:
        pipe: any pipeline. Copies and siblings of an accelerated one are stock.

    Returns:
        The same handle, or ``None`` if the pipeline is not accelerated.
    """
    found = accelerated_by(pipe)
    return found if isinstance(found, Acceleration) else None


def restore(pipe: Any) -> None:
    """Restore a pipeline to its state before :func:`accelerate`. Has no effect if it is not accelerated."""
    acceleration = acceleration_of(pipe)
    if acceleration is not None:
        acceleration.restore()


class Acceleration:
    """Techniques attached to one pipeline. Created by :func:`accelerate`.

    Between calls, only the class of the pipeline object is changed, and the structural edits of techniques. The
    seams are installed when a call starts and removed when it ends or fails.
    """

    def __init__(
        self,
        target: Target,
        made: Plan,
        techniques: tuple[Enabled, ...],
        call: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._call = call
        self._pipe = target.pipe
        self._stock = type(target.pipe)
        self._attachment = Attachment(target, made.techniques, techniques)
        self._generated = make_subclass(self._stock, self, self._attachment.call, self._attachment.attributes)
        self._plan = made
        try:
            for technique in sorted(techniques, key=lambda t: t.name not in _structural(made.techniques)):
                journal = self._attachment.journal.owned(technique.name, technique.culprit)
                technique.attach(target, Seams(technique.name, target, self._attachment.table, journal))
        except BaseException:
            self._attachment.journal.undo_all()
            raise
        set_class(target.pipe, self._generated)

    @property
    def plan(self) -> Plan:
        """Current plan: techniques, findings, forecasts and patches, from the outside in."""
        attachment = self._attachment
        untested = tuple(pair for pair in self._plan.untested if set(pair) <= set(attachment.names))
        patches = (*attachment.table.describe(), *attachment.journal.describe())
        return replace(
            self._plan,
            techniques=self._attached,
            untested=untested,
            patches=patches,
            estimate=attachment.estimate(attachment.target.call_arguments(**self._call)),
        )

    @property
    def _attached(self) -> tuple[PlannedTechnique, ...]:
        return tuple(t for t in self._plan.techniques if t.name in self._attachment.names)

    def report(self) -> Report:
        """Report of the last call; without rows before the first call."""
        return self._attachment.report

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The stock pipeline for the length of a ``with`` block. Structural edits stay.

        For comparisons; applies to every thread that calls the pipeline.
        """
        self._attachment.paused += 1
        try:
            yield
        finally:
            self._attachment.paused -= 1

    def run(self, **arguments: Any) -> AbstractContextManager[Run]:
        """The seams around a loop of your own, which calls the denoiser itself, for the length of a ``with`` block.

        Args:
            **arguments: what a call of the pipeline would get, as far as techniques need to know it (``prompt``,
                ``height``, ``num_inference_steps``).

        Raises:
            UnsupportedError: a technique works on whole pipeline calls only.
        """
        return self._attachment.custom_run(arguments)

    def view(self, config: ConfigLike | None = None) -> Any:
        """An accelerated copy of the pipeline over the same weights, for another thread.

        It has its own scheduler, tokenizers, settings and report. ``hasten.acceleration_of(view)`` is its handle.

        Args:
            config: see :meth:`hasten.Config.of`; the techniques of this acceleration if not given.

        Raises:
            ConfigError: the configuration is wrong.
            ConflictError: techniques conflict.
            UnsupportedError: the pipeline cannot be accelerated like this, or a technique edits the weights that both
                share.
        """
        made = copy.copy(self._pipe)
        same = {technique.name: technique.options for technique in self._attached}
        handle = accelerate(made, same if config is None else config)
        editing = sorted(_structural(self._attached) | _structural(handle._attached))
        if editing:
            handle.restore()
            raise UnsupportedError(
                f"{', '.join(editing)} edits the weights of the {self._stock.__name__}, which a view would share; load "
                f"the pipeline a second time instead"
            )
        return made

    def remove(self, name: str) -> None:
        """Take one technique off and keep the others. A call in progress goes on with it.

        Raises:
            ConfigError: it is not attached.
            PluginError: the wrapper of another technique failed when it was called again; its place is as it was.
        """
        attachment = self._attachment
        if name not in attachment.names:
            known = ", ".join(attachment.names) or "none"
            raise ConfigError(
                f"technique {name!r} is not attached{suggestion(name, attachment.names)} Attached: {known}."
            )
        attachment.table.remove(name)
        attachment.names = tuple(other for other in attachment.names if other != name)
        if not attachment.names:
            self.restore()
        else:
            attachment.journal.undo(name)

    def restore(self) -> None:
        """Give the pipeline back as it was. Calling it again does nothing."""
        for name in self._attachment.names:
            self._attachment.table.remove(name)
        self._attachment.names = ()
        self._attachment.journal.undo_all()
        if type(self._pipe) is self._generated:
            set_class(self._pipe, self._stock)

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.restore()


def _structural(techniques: Iterable[PlannedTechnique]) -> set[str]:
    """Techniques that change the structure of the weights: others must be attached to what they leave."""
    return {t.name for t in techniques if any(claim.slot == "weights.structure" for claim in t.claims)}

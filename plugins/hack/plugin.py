"""The technique ``hack``: claims, checks, attaching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.extend import Access, Claim, Finding, Forecast, ScaleSchedule, Technique, hookimpl
from hasten.plugins.hack.config import HackConfig

if TYPE_CHECKING:
    import typer

    from hasten.extend import DenoiserCall, RunCall, Seams, Target
    from hasten.plugins.hack.calibration import Artefact
    from hasten.plugins.hack.plan import CachePlan
    from hasten.schedules.scales import Schedule

__all__ = ["Hack"]


class Hack(Technique[HackConfig]):
    """Head-aware KV-cache compression, arXiv 2504.09261."""

    name = "hack"
    summary = "keeps a few keys and values per head of VAR and Infinity"
    config_class = HackConfig
    sameness = "close"
    requires = (ScaleSchedule,)

    def __init__(self, config: HackConfig) -> None:
        super().__init__(config)
        self._artefacts: dict[Schedule, Artefact] = {}
        self._order: list[list[int]] | None = None

    def claims(self, target: Target) -> Sequence[Claim]:  # noqa: ARG002
        """The cache is ours; guidance may end early."""
        found = [Claim("attention.kv", Access.EXCLUSIVE)] if self.config.compresses else []
        if self.config.unguided_last_scales:
            found.append(Claim("batch.branches", Access.WRITES))
        return found

    def check(self, target: Target) -> Iterable[Finding]:
        """Refuse a calibration of another model and budgets that are too small; report the kept tokens."""
        from hasten.plugins.hack.plan import mean_budget

        if not self.config.compresses:
            return
        schedule = target.capability(ScaleSchedule).scales(target.pipe, {})
        mean_budget(self.config, schedule)
        if self.config.calibration is not None:
            from hasten.plugins.hack.calibration import read_artefact

            artefact = read_artefact(self.config.calibration)
            artefact.check(target.pipe, artefact.schedule, self.config.calibration)
            self._artefacts[artefact.schedule] = artefact
        if self.config.needs_calibration and schedule not in self._artefacts:
            if self.config.grouping == "permute":
                yield Finding("error", "grouping='permute' needs a calibration file: see `hasten calibrate`")
            yield Finding("note", "no calibration file: a calibration call runs before the first call")
            return
        yield Finding("note", self._plan(target, schedule).describe())

    def forecast(self, target: Target, arguments: Mapping[str, Any], before: Forecast) -> Forecast | None:
        """Every scale with the keys that are read."""
        from hasten.plugins.hack.forecast import forecast

        schedule = target.capability(ScaleSchedule).scales(target.pipe, arguments)
        plan = self._plan(target, schedule) if self.config.compresses else None
        return forecast(self.config, target, arguments, plan, before)

    def attach(self, target: Target, seams: Seams) -> None:
        """Register the cache on the seams. If no tokens are removed, nothing is attached."""
        if self.config.unguided_last_scales:
            seams.run(self._end_guidance)
        if not self.config.compresses:
            return
        if self.config.needs_calibration:
            if self.config.calibration is None:
                seams.run(self._calibrate_first)
            if self.config.grouping == "permute":
                from hasten.plugins.hack.permutation import permute_heads

                schedule = target.capability(ScaleSchedule).scales(target.pipe, {})
                plan = self._plan(target, schedule)
                self._order = [[h for group in groups for h in group.heads] for groups in plan.layers]
                permute_heads(target.pipe.transformer, self._order, seams.journal)
        seams.cache(lambda cache, call: self._make_cache(target, cache, call))
        seams.denoiser(self._record)

    def _make_cache(self, target: Target, cache: Any, call: RunCall) -> Any:
        from hasten.plugins.hack.cache import HackCache
        from hasten.plugins.hack.calibration import CalibratingCache

        if isinstance(cache, CalibratingCache):
            return cache
        schedule = target.capability(ScaleSchedule).scales(target.pipe, call.arguments)
        plan = self._plan(target, schedule)
        return HackCache(self.config, lambda _: plan)

    def _plan(self, target: Target, schedule: Schedule) -> CachePlan:
        """The plan of a schedule, its heads in the order of the weights.

        Raises:
            CheckpointError: the calibration is for another schedule.
        """
        from hasten.plugins.hack.permutation import reordered
        from hasten.plugins.hack.plan import make_plan

        artefact = self._artefacts.get(schedule)
        if artefact is None and self._artefacts and self.config.needs_calibration:
            other = next(iter(self._artefacts.values()))
            other.check(target.pipe, schedule, self.config.calibration or "the calibration")
        config = target.pipe.transformer.config
        plan = make_plan(self.config, schedule, config["num_layers"], config["num_heads"], artefact)
        return plan if self._order is None else reordered(plan, self._order)

    def _end_guidance(self, call: RunCall, proceed: Callable[[RunCall], Any]) -> Any:
        return proceed(call.replace_arguments({"unguided_last_scales": self.config.unguided_last_scales}))

    def _calibrate_first(self, call: RunCall, proceed: Callable[[RunCall], Any]) -> Any:
        """Run a calibration first if this schedule has none, then the call."""
        from hasten.plugins.hack.calibration import CalibratingCache, calibration_call

        schedule = call.target.capability(ScaleSchedule).scales(call.pipe, call.arguments)
        if schedule not in self._artefacts:
            cache = CalibratingCache(1)
            proceed(call.replace_arguments({**calibration_call(call.arguments), "kv_cache": cache}))
            self._artefacts[schedule] = cache.artefact(call.pipe)
        return proceed(call)

    def _record(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        from hasten.plugins.hack.cache import HackCache

        output = proceed(call)
        cache = call.kwargs["cache"]
        if isinstance(cache, HackCache):
            call.run.record(self.name, **cache.facts())
        return output


@hookimpl
def hasten_register_techniques(register: Callable[[type[Technique[Any]]], None]) -> None:
    """Register the technique."""
    register(Hack)


@hookimpl
def hasten_register_commands(app: typer.Typer) -> None:
    """Add ``hasten calibrate`` and ``hasten kv``."""
    from hasten.plugins.hack.commands import add_commands

    add_commands(app)

"""The search: settings are asked for, priced, looked at with few prompts first, and remembered on disk."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hasten.commands import Job, Processes
from hasten.eval.compare.knee import Judge
from hasten.eval.compare.making import make_pictures
from hasten.eval.compare.store import RunStore
from hasten.eval.tune.budget import looks
from hasten.eval.tune.pace import Pace, seconds_each, usual
from hasten.eval.tune.prices import Price, price_of
from hasten.eval.tune.setting import Setting
from hasten.eval.tune.space import Space
from hasten.extend import ConfigError, Pipeline

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Outcome",
    "Result",
    "Search",
    "losses",
    "open_study",
    "require_library",
    "results_of",
    "skipped_of",
]

Outcome = Literal["held", "undecided", "missed", "slower"]
_NAME = "tune"
_STALE = 150
"""Answers of the sampler in a row that bring nothing new, after which the space counts as searched."""
_WORTH = 0.98
"""A setting has to be expected below this share of the best one's cost to be looked at."""
_RESULT, _SKIPPED, _RANK, _CONSTRAINT = "result", "skipped", "rank", "constraint"


@dataclass(frozen=True)
class Result:
    """What looking at a setting has shown.

    Args:
        setting: fields of the setting.
        outcome: by all margins on all prompts of the search; ``"missed"`` and ``"slower"`` may have ended it early.
        prompts: how many were looked at.
        seconds: a picture, measured; the median over batches.
        share: of the reference's FLOPs that the denoiser takes, predicted.
        cost: what counts: ``seconds``, or ``share`` where the machine is too noisy to time.
        loss: metric -> loss against the reference as a share of the margin; 1 is all that is tolerated.
        figures: metric -> what the judge said.
    """

    setting: Mapping[str, Any]
    outcome: Outcome
    prompts: int
    seconds: float
    share: float
    cost: float
    loss: Mapping[str, float]
    figures: Mapping[str, Any]

    @property
    def worst(self) -> float:
        """The largest of the losses."""
        return max(self.loss.values(), default=0.0)


def losses(
    figures: Mapping[str, Any], margins: Mapping[str, float], higher: Mapping[str, bool]
) -> dict[str, float]:
    """Metric -> estimated loss as a share of its margin; negative where the setting is better."""
    return {
        name: (-1 if higher[name] else 1) * figures[name]["change"]["value"] / margin
        for name, margin in margins.items()
    }


def require_library() -> None:
    """Refuse a tuning without the library that searches, before anything is loaded.

    Raises:
        ConfigError: says how to install it.
    """
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(f"a tuning needs {error.name}: pip install 'hasten[tune]'") from error


def open_study(file: Path, seed: int) -> optuna.Study:
    """The study in ``file``, begun if it is not there."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its newer options are marked as experimental
        sampler = optuna.samplers.TPESampler(
            multivariate=True,
            group=True,
            seed=seed,
            constraints_func=lambda trial: trial.user_attrs.get(_CONSTRAINT, [1.0]),
        )
        return optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name=_NAME,
            directions=["minimize", "minimize"],
            load_if_exists=True,
            sampler=sampler,
        )


def results_of(study: optuna.Study) -> list[Result]:
    """Every setting that was looked at, once."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if (fields := trial.user_attrs.get(_RESULT)) is not None:
            result = Result(**fields)
            found[Setting.of(result.setting).arm.name] = result
    return list(found.values())


def skipped_of(study: optuna.Study) -> list[tuple[Setting, str]]:
    """Settings on which no picture was spent, and why."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        if (fields := trial.user_attrs.get(_SKIPPED)) is not None:
            setting = Setting.of(fields["setting"])
            found[setting.arm.name] = (setting, fields["why"])
    return list(found.values())


@dataclass
class Search:
    """One process of a search.

    Args:
        pipe: the stock pipeline.
        job: prompts of the search.
        space: where to search.
        store: pictures; the baseline's are there.
        study: what is remembered.
        judge: of a setting against the baseline.
        margins: metric -> tolerated loss.
        higher: metric -> whether more of it is better.
        pace: what plain sampling takes.
        reference: seconds a picture of the baseline.
        timed: whether seconds count; else FLOPs.
        deadline: on the clock of ``time.monotonic``.
        processes: this process among several.
        tell: called with a better setting, and its cost.
        watch: called with the first judgement on all prompts.
        tick: called now and then.
    """

    pipe: Pipeline
    job: Job
    space: Space
    store: RunStore
    study: optuna.Study
    judge: Judge
    margins: Mapping[str, float]
    higher: Mapping[str, bool]
    pace: Pace
    reference: float
    timed: bool
    deadline: float
    processes: Processes
    tell: Callable[[Result], None] = lambda _: None
    watch: Callable[[Mapping[str, Any]], None] = lambda _: None
    tick: Callable[[int], None] = lambda _: None

    def begin(self, first: Sequence[Setting]) -> None:
        """Queue what is to be tried first, and again what a killed process of this number left half done."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if trial.user_attrs.get(_RANK, 0) == self.processes.rank:
                self.study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self.study.enqueue_trial(dict(trial.params))
        if self.processes.rank == 0:
            for setting in first:
                self.study.enqueue_trial(self.space.parameters(setting), skip_if_exists=True)

    def run(self) -> None:
        """Try settings until the time is up, or nothing new comes."""
        stale = 0
        while stale < _STALE and time.monotonic() < self.deadline:
            stale = 0 if self._try_one() else stale + 1
            self.tick(len(results_of(self.study)))

    def _try_one(self) -> bool:
        """Ask for a setting and look at it; whether that cost any picture."""
        trial = self.study.ask()
        trial.set_user_attr(_RANK, self.processes.rank)
        setting = self.space.suggest(trial)
        known = {Setting.of(result.setting).arm.name: result for result in results_of(self.study)}
        name = setting.arm.name
        if name in known:
            self._remember(trial, known[name])
            return False
        price, best = price_of(self.pipe, setting, self.job), self._best(list(known.values()))
        expected = self._cost(self.pace.seconds(setting, price.share), self._share(setting, price))
        if price.refusal:
            self._skip(trial, setting, price.refusal)
            return False
        if expected >= _WORTH * best:
            unit = "s a picture" if self.timed else "of the reference's FLOPs"
            why = f"expected at {expected:.3g} {unit}, and {best:.3g} has held or is the reference's"
            self._skip(trial, setting, why, expected=expected, best=best)
            return False
        result = self._look(setting, price, best)
        if result is None:
            self._skip(trial, setting, "the time was up before it was judged")
            return True
        self._remember(trial, result)
        if result.outcome == "held" and result.cost < best:
            self.tell(result)
        return True

    def _best(self, results: Sequence[Result]) -> float:
        """Cost of the cheapest setting that held; of the baseline, before there is one."""
        held = [result.cost for result in results if result.outcome == "held"]
        return min([self._cost(self.reference, 1.0), *held])

    def _cost(self, seconds: float, share: float) -> float:
        return seconds if self.timed else share

    def _share(self, setting: Setting, price: Price) -> float:
        """Of the reference's denoiser FLOPs."""
        return price.share * setting.steps / self.space.reference

    def _look(self, setting: Setting, price: Price, best: float) -> Result | None:
        """Judge it after more and more prompts; ``None`` if the time is up before the last look."""
        arm = setting.arm
        figures: Mapping[str, Any] = {}
        for count in looks(len(self.job.prompts), self.job.batch_size):
            if time.monotonic() > self.deadline:
                return None
            part = Job(self.job.prompts[:count], self.job.seed, self.job.call, self.job.batch_size)
            make_pictures(self.pipe, self.store, [arm], part, Processes(), lambda *_: None)
            seconds = usual(seconds_each(self.store, arm.name))
            figures = self.judge(self.store, arm.name, part.prompts)
            cost = self._cost(seconds, self._share(setting, price))
            outcome = _outcome(figures)
            if outcome != "missed" and cost >= best and count < len(self.job.prompts):
                outcome = "slower"
            if outcome in ("missed", "slower"):
                break
        if count == len(self.job.prompts):
            self.watch(figures)
        self.pace = self.pace.learned(setting, price.share, seconds)
        loss = losses(figures, self.margins, self.higher)
        share = self._share(setting, price)
        return Result(setting.to_dict(), outcome, count, seconds, share, cost, loss, dict(figures))

    def _remember(self, trial: optuna.Trial, result: Result) -> None:
        trial.set_user_attr(_RESULT, asdict(result))
        slower = 1.0 if result.outcome == "slower" else -1.0
        trial.set_user_attr(_CONSTRAINT, [max(result.worst - 1.0, slower)])
        self.study.tell(trial, [result.cost, max(0.0, result.worst)])

    def _skip(
        self, trial: optuna.Trial, setting: Setting, why: str, *, expected: float = 0.0, best: float = 0.0
    ) -> None:
        """No picture; one that is expected to be slow teaches the sampler so, and says nothing about its quality."""
        from optuna.trial import TrialState

        trial.set_user_attr(_SKIPPED, {"setting": setting.to_dict(), "why": why})
        if not expected:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr(_CONSTRAINT, [expected / best - _WORTH + 1e-6])
        self.study.tell(trial, [expected, 0.0])


def _outcome(figures: Mapping[str, Any]) -> Outcome:
    """By every metric with a margin together."""
    outcomes = [figure["outcome"] for figure in figures.values()]
    if all(figure["held"] for figure in figures.values()):
        return "held"
    return "missed" if "missed" in outcomes else "undecided"

"""A tuning from its first picture to its answer; it can be killed at any moment and goes on when started again."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hasten
from hasten.commands import PATIENCE, Config, Job, Processes, wait_for
from hasten.eval.compare.document import Evaluation, rung_judge
from hasten.eval.compare.engine import BASELINE, Arm
from hasten.eval.compare.knee import Judge, Ladder, default_steps, working_solvers
from hasten.eval.compare.making import make_pictures, wait_for_pictures
from hasten.eval.compare.run import steps_are_free
from hasten.eval.compare.store import RunStore
from hasten.eval.tune.answer import Answer, answer_of, unconfirmed
from hasten.eval.tune.budget import FEWEST_PROMPTS, Budget, Noise, check_prompts, check_spread, divide
from hasten.eval.tune.confirm import Finalist, Standing, confirm, finalists_of, standings, timings_of
from hasten.eval.tune.pace import Pace, seconds_each, usual
from hasten.eval.tune.search import Result, Search, open_study, results_of, skipped_of
from hasten.eval.tune.setting import Setting
from hasten.eval.tune.space import FEWEST, Space, space_of
from hasten.extend import ConfigError, Pipeline
from hasten.files import read_sealed, seal, write_atomically

if TYPE_CHECKING:
    import optuna

__all__ = ["Request", "Tuned", "Tuning", "check_evaluation"]

_ALONE = Processes()
SEARCHING = "searching, seconds of the budget"
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What a tuning is asked for. Only an equal one, apart from ``minutes``, is continued.

    Args:
        model: name the pipeline was loaded by.
        job: all prompts, seed, call and batch size; its steps are the reference.
        minutes: of the whole.
        chosen: techniques to restrict the search to; ``None`` for every installed one.
        dtype: number format of the pipeline.
        solver: that was chosen instead of the pipeline's own.
    """

    model: str
    job: Job
    minutes: float
    chosen: Config | None = None
    dtype: str = "float32"
    solver: str | None = None

    def __post_init__(self) -> None:
        check_prompts(len(self.job.prompts))
        if not 0 < self.minutes < float("inf"):
            raise ConfigError(f"--minutes {self.minutes}: give the minutes that the tuning may take, above 0")
        if "num_inference_steps" not in self.job.call:
            raise ConfigError("the number of denoising steps of the reference is not known: give --steps")

    @property
    def steps(self) -> int:
        """Denoising steps of the reference."""
        return int(self.job.call["num_inference_steps"])

    def to_dict(self) -> dict[str, Any]:
        """What an equal request has equal."""
        return {
            "schema": 1,
            "model": self.model,
            **self.job.to_dict(),
            "chosen": None if self.chosen is None else self.chosen.to_dict()["techniques"],
            "dtype": self.dtype,
            "solver": self.solver,
        }


def check_evaluation(evaluation: Evaluation) -> None:
    """Refuse to search without a margin, or with one that no number of prompts can confirm.

    Raises:
        ConfigError: says which metrics can have a margin.
    """
    margins = evaluation.settings.margins or {}
    if not margins:
        able = [m.name for m in evaluation.metrics if "baseline" not in m.needs or m.perfect is not None]
        raise ConfigError(
            "which loss do you tolerate? Give --margin METRIC=VALUE "
            f"(of what is measured, {', '.join(able) or 'nothing'} can have one)"
        )
    for name, margin in margins.items():
        if margin == 0:
            raise ConfigError(
                f"--margin {name}=0: no number of prompts can confirm that nothing at all is lost; give the smallest "
                "loss that would matter to you"
            )


@dataclass(frozen=True)
class Tuned:
    """What a tuning found.

    Args:
        answer: the setting to use.
        space: where it searched.
        results: settings that were looked at.
        skipped: settings on which no picture was spent, and why.
        standings: of the finalists on fresh prompts.
        confirmation: pictures of these; ``None`` where there was nothing to confirm.
        budget: how prompts and time were divided.
        reference: seconds a picture of the reference.
        noise: of the machine.
        warnings: what the user should know, in words.
    """

    answer: Answer
    space: Space
    results: Sequence[Result]
    skipped: Sequence[tuple[Setting, str]]
    standings: Sequence[Standing]
    confirmation: RunStore | None
    budget: Budget
    reference: float
    noise: Noise
    warnings: Sequence[str]


@dataclass
class Tuning:
    """One process of a tuning.

    Args:
        pipe: the stock pipeline.
        request: what is asked for.
        evaluation: metrics, margins and level.
        folder: where everything is kept.
        about: versions, machine and command.
        processes: this process among several.
        progress: called with what is being done, how much of it is done, and all of it.
        say: called with each better setting, in words.
        patience: seconds to wait for other processes.
    """

    pipe: Pipeline
    request: Request
    evaluation: Evaluation
    folder: Path
    about: Mapping[str, Any]
    processes: Processes = _ALONE
    progress: Progress = lambda *_: None
    say: Callable[[str], None] = lambda _: None
    patience: float = PATIENCE

    def run(self) -> Tuned | None:
        """Search and confirm; the first process returns what was found, others ``None``.

        Raises:
            ConfigError: a margin of zero, too short a budget, too few prompts, or a folder that holds another tuning.
            KeyboardInterrupt: the best so far is in :attr:`partial` then.
            HastenError: from the run or the disk.
        """
        self._began, self._warnings = time.monotonic(), []
        self._margins = dict(self.evaluation.settings.margins or {})
        check_evaluation(self.evaluation)
        self._store = RunStore(self.folder / "search", self.processes.rank)
        state = self._open()
        self._budget = Budget(**state["budget"])
        self._noise, self._reference = Noise(state["spread"]), state["reference"]
        if self._noise.too_much:
            self._warnings.append(
                f"this machine is too noisy to time (equal batches spread by {100 * self._noise.spread:.0f} %): FLOPs "
                "decide which setting is faster; try again on an idle machine"
            )
        self._space = space_of(
            self.pipe, self.request.job, state["solvers"], self.request.chosen, steps_are_free=state["free"]
        )
        self._study = open_study(self.folder / "study.log", self.request.job.seed + self.processes.rank)
        self._search(Pace(**state["pace"]))
        found = self._finalists()
        return self._conclude(found)

    def partial(self) -> Tuned | None:
        """What is known after an interruption; ``None`` before the search began."""
        if not hasattr(self, "_study"):
            return None
        return self._tuned(unconfirmed(results_of(self._study), self.request.steps), [], None)

    def _asked(self) -> dict[str, Any]:
        metrics = {
            m.name: m.fingerprint().as_dict() for m in self.evaluation.metrics if m.name in self._margins
        }
        settings = self.evaluation.settings
        return {
            **self.request.to_dict(),
            "margins": self._margins,
            "level": settings.level,
            "judged_by": metrics,
        }

    def _open(self) -> dict[str, Any]:
        """Begin, or check that the folder holds this tuning; the state that all processes share."""
        store = self._store
        store.check_request(self._asked())
        store.resume()
        if store.read_run() is None:
            if self.processes.rank == 0:
                state = self._probe()
                fields = {"request": self._asked(), "arms": [], "flops": {}, "profiles": {}}
                store.begin({"schema": 1, **fields, "about": state})
            else:
                wait_for(lambda: store.run_file.exists(), 1, "the first pictures", patience=self.patience)
                store.check_request(self._asked())
        run = store.read_run()
        assert run is not None
        state = dict(run["about"])
        # More minutes than before lengthen the search; what was confirmed on must stay unseen.
        parts = dict(state["budget"])
        parts["seconds"] = 60 * self.request.minutes - (60 * state["minutes"] - parts["seconds"])
        return {**state, "budget": parts}

    def _probe(self) -> dict[str, Any]:
        """The first pictures: how long a step takes here, how noisy that is, and what there is time for."""
        request, free = self.request, steps_are_free(self.pipe)
        solvers, notes = working_solvers(self.pipe, request.job) if free else ([None], [])
        few = min(FEWEST, request.steps)
        arms = [Arm(BASELINE, "baseline", request.steps)]
        arms += [Setting(few).arm] if free and few < request.steps else []
        count = max(FEWEST_PROMPTS, request.job.batch_size)
        job = replace(request.job, prompts=request.job.prompts[:count])
        make_pictures(
            self.pipe,
            self._store,
            arms,
            job,
            Processes(),
            lambda *n: self.progress("timing the reference", *n),
        )
        times = [seconds_each(self._store, arm.name) for arm in arms]
        each = [usual(found) for found in times]
        pace = Pace.of((request.steps, each[0]), (arms[-1].steps, each[-1]))
        spread = Noise.of(times[0][1:] or times[0]).spread
        budget = divide(request.minutes, each[0], len(request.job.prompts))
        return {
            "solvers": solvers,
            "notes": notes,
            "free": free,
            "minutes": request.minutes,
            "budget": asdict(budget),
            "pace": {"fixed": pace.fixed, "step": pace.step},
            "reference": each[0],
            "spread": spread,
        }

    def _search(self, pace: Pace) -> None:
        job = replace(self.request.job, prompts=self.request.job.prompts[: self._budget.search])
        baseline = [Arm(BASELINE, "baseline", self.request.steps)]
        make_pictures(
            self.pipe,
            self._store,
            baseline,
            job,
            self.processes,
            lambda *n: self.progress("the reference", *n),
        )
        wait_for_pictures(self._store, baseline, len(job.prompts), self.patience)
        spent = _spent(self._study) / self.processes.world
        left = max(0.0, self._budget.seconds - spent - (time.monotonic() - self._began))
        start, length = time.monotonic(), int(self._budget.seconds)

        def tick(_: int) -> None:
            self.progress(
                SEARCHING, min(length, int(self._budget.seconds - left + time.monotonic() - start)), length
            )

        search = Search(
            self.pipe,
            job,
            self._space,
            self._store,
            self._study,
            self._judge(),
            self._margins,
            {metric.name: metric.higher_is_better for metric in self.evaluation.metrics},
            pace,
            self._reference,
            not self._noise.too_much,
            start + left,
            self.processes,
            self._better,
            self._watch,
            tick,
        )
        ladder = default_steps(self.request.steps) if self._space.steps else ()
        known = hasten.presets(self.pipe, **self.request.job.call)
        presets = [setting for preset in known if (setting := self._space.nearest(preset.config)) is not None]
        search.begin([*presets, *self._space.first_settings(ladder)])
        tick(0)
        search.run()

    def _judge(self) -> Judge:
        ladder = Ladder((), self._margins, self._budget.search, self.evaluation.settings.level)
        return rung_judge(self.evaluation, ladder)

    def _better(self, result: Result) -> None:
        gain = self._reference / result.seconds
        self.say(
            f"{result.seconds:.3g} s a picture ({gain:.2f}x): {Setting.of(result.setting).describe()}, "
            f"{100 * max(0.0, result.worst):.0f} % of the margin"
        )

    def _watch(self, figures: Mapping[str, Any]) -> None:
        """After the first setting on all prompts: can what is found be confirmed at all?"""
        if self.processes.rank > 0 or getattr(self, "_watched", False):
            return
        self._watched = True
        spreads = {
            name: (figure["change"]["se"] or 0.0) * figure["change"]["clusters"] ** 0.5
            for name, figure in figures.items()
        }
        prompts, level = len(self.request.job.prompts), self.evaluation.settings.level
        self._warnings += check_spread(spreads, self._margins, self._budget, prompts, level)

    def _finalists(self) -> list[Finalist]:
        """Chosen once, by the first process, for these minutes."""
        file = self.folder / f"finalists-{self.request.minutes:g}.json"
        remedy = f"remove {file}"
        if self.processes.rank == 0 and read_sealed(file, remedy) is None:
            chosen = finalists_of(results_of(self._study))
            entries = [{"name": one.name, "setting": one.setting.to_dict()} for one in chosen]
            write_atomically(file, seal({"finalists": entries}))
        wait_for(lambda: file.exists(), 1, "the finalists", patience=self.patience)
        found = read_sealed(file, remedy)
        assert found is not None
        return [Finalist(entry["name"], Setting.of(entry["setting"])) for entry in found["finalists"]]

    def _conclude(self, finalists: Sequence[Finalist]) -> Tuned | None:
        """Confirm on prompts that the search never saw."""
        job, first = self.request.job, self._budget.search
        fresh = replace(job, prompts=job.prompts[first : first + self._budget.confirm], seed=job.seed + first)
        if not finalists:
            answer = answer_of([], None, self.request.steps, self._margins)
            return self._tuned(answer, [], None) if self.processes.rank == 0 else None
        text = json.dumps([finalist.setting.to_dict() for finalist in finalists], sort_keys=True)
        place = self.folder / "confirm" / hashlib.sha256(text.encode()).hexdigest()[:10]
        store = confirm(
            self.pipe,
            fresh,
            finalists,
            place,
            {"model": self.request.model},
            about=self.about,
            processes=self.processes,
            progress=self.progress,
            patience=self.patience,
        )
        if self.processes.rank > 0:
            return None
        found = standings(store, finalists, self.evaluation)
        timings = None if self._noise.too_much else timings_of(store)
        answer = answer_of(found, timings, self.request.steps, self._margins)
        return self._tuned(answer, found, store)

    def _tuned(self, answer: Answer, found: Sequence[Standing], store: RunStore | None) -> Tuned:
        results, skipped = results_of(self._study), skipped_of(self._study)
        parts = (self._budget, self._reference, self._noise, self._warnings)
        return Tuned(answer, self._space, results, skipped, found, store, *parts)


def _spent(study: optuna.Study) -> float:
    """Seconds that earlier runs of all processes have searched."""
    found = (trial.duration for trial in study.get_trials(deepcopy=False))
    return sum(duration.total_seconds() for duration in found if duration is not None)

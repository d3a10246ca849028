"""pluggy calls the hooks: ordering, wrappers and monitoring are its own, and a fault in one plugin stays there."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import Finding, PluginError
from hasten._hookspecs import HOOKS
from hasten._plugins import BUILT_IN, Host, PluginRecord, host

from .test_plugins import METRIC, distribution

ADDITIONS = {
    "hasten_register_commands": lambda made: made.add_commands(object()),
    "hasten_register_benchmarks": lambda made: made.add_benchmarks(object()),
}
"""Hooks that are called when the command line is built, not when a plugin is loaded."""
REGISTERS = [
    hook.__name__ for hook in HOOKS if "register" in hook.__name__ and hook.__name__ not in ADDITIONS
]
FAULTS = {
    "exception": "raise ValueError('broken on purpose')",
    "exit": "raise SystemExit('broken on purpose')",
    "cancelled": "raise asyncio.CancelledError('broken on purpose')",
    "object": "return object()",
    "text": "return 'garbage'",
    "generator": "yield object()",
}


def body(fault: str, hook: str) -> str:
    (argument,) = next(h for h in HOOKS if h.__name__ == hook).__code__.co_varnames
    return f"import asyncio, hasten\n@hasten.hookimpl\ndef {hook}({argument}):\n    {FAULTS[fault]}\n"


def plugin(source: str, name: str = "bad") -> types.ModuleType:
    module = types.ModuleType(name)
    exec(source, vars(module))
    return module


def plan(*techniques: str) -> hasten.Plan:
    return hasten.Plan("FluxPipeline", "flux", ())


def report() -> hasten.Report:
    return hasten.Report("FluxPipeline", ())


@pytest.fixture
def made() -> Host:
    return Host(built_in=(), external=False)


def admit(made: Host, source: str, name: str = "bad") -> PluginRecord:
    """Load a plugin as one of an installed distribution."""
    made._load(PluginRecord(name, "external", f"{name}-dist", "1.2"), lambda: plugin(source, name))
    return next(record for record in made.plugins if record.name == name)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hook", REGISTERS)
def test_a_plugin_that_fails_to_register_is_set_aside(made: Host, hook: str, fault: str) -> None:
    admit(made, METRIC, "good")
    record = admit(made, body(fault, hook))
    verb = "failed in" if "raise" in FAULTS[fault] else "returned .* from"
    assert record.error is not None
    with pytest.raises(PluginError, match=rf"^plugin bad \(bad-dist 1\.2\) {verb} {hook}"):
        raise PluginError(record.error.removeprefix("PluginError: "))
    assert made.metric("sharpness")
    assert made.registry.provided_by("bad") == ()
    with pytest.raises(hasten.ConfigError, match=r"failed to load: bad \(bad-dist 1\.2\): PluginError"):
        made.technique("something")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_plan_hook_that_fails_is_named(made: Host, fault: str) -> None:
    assert admit(made, body(fault, "hasten_plan")).error is None
    verb = "failed in" if "raise" in FAULTS[fault] else "returned .* from"
    with pytest.raises(PluginError, match=rf"^plugin bad \(bad-dist 1\.2\) {verb} hasten_plan"):
        made.comment(plan())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_listener_that_fails_is_told_and_the_others_hear(made: Host, fault: str) -> None:
    heard: list[Any] = []

    class Listens:
        @hasten.hookimpl
        def hasten_run_finished(self, report: Any) -> None:
            heard.append(report)

    made.register(Listens(), "before")
    admit(made, body(fault, "hasten_run_finished"))
    made.register(Listens(), "after")
    with pytest.warns(RuntimeWarning, match=r"plugin bad \(bad-dist 1\.2\) .* hasten_run_finished"):
        made.run_finished(report())
    assert len(heard) == 2


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("hook", ADDITIONS)
def test_commands_that_fail_are_recorded(made: Host, fault: str, hook: str) -> None:
    admit(made, body(fault, hook))
    ADDITIONS[hook](made)
    (record,) = made.plugins
    assert record.error is not None
    assert "broken on purpose" in record.error or hook in record.error


@pytest.mark.parametrize("hook", [hook.__name__ for hook in HOOKS])
def test_an_interrupt_in_a_hook_interrupts(made: Host, hook: str) -> None:
    (argument,) = next(h for h in HOOKS if h.__name__ == hook).__code__.co_varnames
    source = f"import hasten\n@hasten.hookimpl\ndef {hook}({argument}):\n    raise KeyboardInterrupt\n"

    def use() -> None:
        admit(made, source)
        made.comment(plan())
        for add in ADDITIONS.values():
            add(made)
        made.run_finished(report())

    with pytest.raises(KeyboardInterrupt):
        use()


@pytest.mark.parametrize(
    "statement",
    [
        "raise KeyError('x')",
        "raise SystemExit",
        "import asyncio; raise asyncio.CancelledError",
        "raise BaseException",
    ],
)
def test_whatever_an_import_raises_the_tool_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    distribution(tmp_path, "bad-dist", "bad_at_import", statement)
    distribution(tmp_path, "good-dist", "good_plugin_x", METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Host(built_in=())
    records = {record.name: record for record in made.plugins}
    assert records["bad_at_import"].error
    assert made.metric("sharpness")


def test_an_interrupt_at_import_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "bad-dist", "interrupted_at_import", "raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        Host(built_in=())


def test_a_distribution_whose_entry_points_cannot_be_read_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "damaged-dist", "damaged_plugin", "")
    (tmp_path / "damaged-dist-1.2.dist-info" / "entry_points.txt").write_text("[hasten]\ndamaged\n[hasten")
    distribution(tmp_path, "good-dist", "good_plugin_y", METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Host(built_in=())
    (record,) = [record for record in made.plugins if record.distribution == "damaged-dist"]
    assert "entry_points.txt cannot be read" in str(record.error)
    assert made.metric("sharpness")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "implements no hook; write one of hasten_register_techniques"),
        (
            "def hasten_plan(plan): ...",
            "function hasten_plan without a decorator; put @hasten.hookimpl above it",
        ),
        (
            "import hasten\n@hasten.hookimpl(wrapper=True)\ndef hasten_register_metrics(register): yield",
            "historic incompatible",
        ),
        (
            "import hasten\n@hasten.hookimpl(wrapper=True)\ndef hasten_plan(plan): ...",
            "not a generator function",
        ),
        (
            "import hasten\nhasten.Config.of(['hack'])",
            "plugins are still being loaded",
        ),
    ],
)
def test_mistakes_of_an_author_are_told(
    made: Host, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr("hasten._plugins._host", None)
    monkeypatch.setattr("hasten._plugins._being_made", True)
    assert message in str(admit(made, source).error)


def test_a_class_is_no_plugin(made: Host) -> None:
    class Plugin:
        @hasten.hookimpl
        def hasten_plan(self, plan: Any) -> None: ...

    with pytest.raises(PluginError, match=r"is the class .*Plugin; let the entry point name a module"):
        made.register(Plugin, "bad")


def test_an_optional_hook_of_another_version_is_passed_over(made: Host) -> None:
    source = "import hasten\n@hasten.hookimpl(optionalhook=True)\ndef hasten_later(x): ...\n" + METRIC
    assert admit(made, source).error is None


def test_register_that_is_kept_is_refused(made: Host) -> None:
    kept: list[Any] = []

    class Keeps:
        @hasten.hookimpl
        def hasten_register_metrics(self, register: Any) -> None:
            kept.append(register)

    made.register(Keeps(), "keeps")
    with pytest.raises(PluginError, match="call it inside the hook"):
        kept[0]("late", lambda: None, "too late")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "register('psnr', lambda: 0, 'mine')",
            "metric 'psnr' is registered by the plugins 'bad' and 'hasten.eval.builtin'",
        ),
        ("register('mine', 3, 'x')", "the factory 3 is not callable"),
        ("register('mine', print, None)", "the summary is one line of text, not None"),
        ("register('mine')", "TypeError"),
    ],
)
def test_wrong_metrics_are_refused(call: str, message: str) -> None:
    made = Host(built_in=("hasten.eval.builtin",), external=False)
    builtin = made.metric("psnr")
    source = f"import hasten\n@hasten.hookimpl\ndef hasten_register_metrics(register):\n    {call}\n"
    assert message in str(admit(made, source).error)
    assert made.metric("psnr") is builtin


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("Adapter('flux', ('MyPipeline',))", "adapter 'flux' is registered by the plugins 'bad' and"),
        ("Adapter('mine', ('FluxPipeline',))", "the adapters of 'mine' and 'flux' both cover FluxPipeline"),
        ("42", "42 is not a hasten.extend.Adapter"),
        (
            "Adapter('mine', 'FluxPipeline')",
            "pipelines of adapter 'mine' is a tuple of names, not 'FluxPipeline'",
        ),
        ("Adapter('mine', ('P',), capabilities=(Adapter,))", "a tuple of instances"),
    ],
)
def test_wrong_adapters_are_refused(adapter: str, message: str) -> None:
    made = Host(built_in=("hasten.pipelines.adapters",), external=False)
    source = (
        "import hasten\nfrom hasten.pipelines.adapters import Adapter\n@hasten.hookimpl\n"
        f"def hasten_register_adapters(register):\n    register({adapter})\n"
    )
    assert message in str(admit(made, source).error)
    assert made.registry.adapters["FluxPipeline"].family == "flux"


def test_a_technique_may_not_take_the_name_of_a_built_in_one() -> None:
    made = Host(built_in=("hasten.plugins.hack.plugin",), external=False)
    source = """
import hasten
class Mine(hasten.Technique):
    name, summary, config_class = "hack", "mine", hasten.TechniqueConfig
    def claims(self, target): return []
    def attach(self, target, seams): ...
@hasten.hookimpl
def hasten_register_techniques(register): register(Mine)
"""
    assert "'hack' is registered by the plugins 'bad' and 'hasten.plugins.hack.plugin'" in str(
        admit(made, source).error
    )
    assert made.technique("hack").__module__ == "hasten.plugins.hack.plugin"


# --- pluggy's own machinery


class Says:
    def __init__(self, word: str, **options: Any) -> None:
        self.word = word

    def answer(self) -> list[Finding]:
        return [Finding("note", self.word)]


class First(Says):
    @hasten.hookimpl(tryfirst=True)
    def hasten_plan(self, plan: Any) -> Any:
        return self.answer()


class Middle(Says):
    @hasten.hookimpl
    def hasten_plan(self) -> Any:
        return self.answer()


class Last(Says):
    @hasten.hookimpl(trylast=True, specname="hasten_plan")
    def comes_last(self, plan: Any) -> Any:
        return self.answer()


def said(made: Host) -> list[str]:
    return [finding.message for finding in made.comment(plan())]


def test_implementations_are_called_in_the_order_they_ask_for(made: Host) -> None:
    for name, kind in (("c", First), ("a", Last), ("b", Middle), ("d", First)):
        made.register(kind("x"), name)
    assert said(made) == ["d: x", "c: x", "b: x", "a: x"]


class Wrapper:
    @hasten.hookimpl(wrapper=True)
    def hasten_plan(self, plan: Any) -> Iterator[Any]:
        answers = yield
        return [answers[-1], [Finding("warning", f"{len(answers)} plugins spoke")]]


class OldWrapper:
    @hasten.hookimpl(hookwrapper=True)
    def hasten_plan(self, plan: Any) -> Iterator[Any]:
        outcome = yield
        outcome.force_result([*outcome.get_result(), [Finding("note", "and I")]])


def test_wrappers_change_what_the_others_said(made: Host) -> None:
    made.register(Middle("x"), "a")
    made.register(Middle("x"), "b")
    undo = made.register(Wrapper(), "w")
    assert said(made) == ["a: x", "w: 2 plugins spoke"]
    made.register(OldWrapper(), "o")
    assert said(made) == ["a: x", "w: 2 plugins spoke", "o: and I"]
    undo()
    assert said(made) == ["b: x", "a: x", "o: and I"]


def test_a_wrapper_may_answer_for_an_implementation_that_failed(made: Host) -> None:
    class Forgives:
        @hasten.hookimpl(wrapper=True)
        def hasten_plan(self, plan: Any) -> Iterator[Any]:
            with suppress(PluginError):
                return (yield)
            return [[Finding("note", "forgiven")]]

    admit(made, body("exit", "hasten_plan"))
    made.register(Forgives(), "f")
    assert said(made) == ["f: forgiven"]


WRAPPERS = {
    "raises before": "raise SystemExit('no')\n    yield",
    "raises after": "yield\n    raise asyncio.CancelledError('no')",
    "does not yield": "if False: yield",
    "yields twice": "yield\n    yield",
    "returns nothing": "yield",
    "returns garbage": "yield\n    return 'garbage'",
    "answers with garbage": "yield\n    return [[object()]]",
}


@pytest.mark.parametrize("fault", WRAPPERS)
def test_a_wrapper_that_fails_is_named(made: Host, fault: str) -> None:
    source = (
        "import asyncio, hasten\n@hasten.hookimpl(wrapper=True)\ndef hasten_plan(plan):\n    "
        + WRAPPERS[fault]
    )
    made.register(Middle("x"), "a")
    admit(made, source)
    with pytest.raises(PluginError, match=r"^plugin bad \(bad-dist 1\.2\) .*hasten_plan"):
        made.comment(plan())
    quiet = source.replace("hasten_plan(plan)", "hasten_run_finished(report)")
    if not fault.startswith(("returns", "answers")):
        heard: list[Any] = []

        class Listens:
            @hasten.hookimpl
            def hasten_run_finished(self, report: Any) -> None:
                heard.append(report)

        made.register(Listens(), "listens")
        admit(made, quiet, "quiet")
        with pytest.warns(RuntimeWarning, match=r"plugin quiet \(quiet-dist 1\.2\) .*hasten_run_finished"):
            made.run_finished(report())
        assert len(heard) == 1


@pytest.mark.parametrize("fault", ["raises before", "raises after", "does not yield", "yields twice"])
@pytest.mark.filterwarnings("ignore::pluggy.PluggyTeardownRaisedWarning")
def test_a_wrapper_of_the_old_kind_that_fails_is_named(made: Host, fault: str) -> None:
    marker = "@hasten.hookimpl(hookwrapper=True)\n"
    admit(made, f"import asyncio, hasten\n{marker}def hasten_plan(plan):\n    {WRAPPERS[fault]}")
    with pytest.raises(PluginError, match=r"^plugin bad \(bad-dist 1\.2\) .*hasten_plan"):
        made.comment(plan())


def test_hook_calls_can_be_monitored(made: Host) -> None:
    calls: list[tuple[str, list[str]]] = []

    def before(name: str, implementations: Any, arguments: Any) -> None:
        calls.append((name, [implementation.plugin_name for implementation in implementations]))

    undo = made._manager.add_hookcall_monitoring(before, lambda *_: None)
    made.register(Middle("x"), "a")
    admit(made, METRIC, "good")
    made.comment(plan())
    made.run_finished(report())
    undo()
    assert calls == [
        ("hasten_register_metrics", ["good"]),
        ("hasten_plan", ["a"]),
        ("hasten_run_finished", []),
    ]


def test_built_in_plugins_know_no_fault() -> None:
    assert {record.error for record in host().plugins if record.name in BUILT_IN} == {None}


def test_a_cancelled_error_is_told_by_its_name(made: Host) -> None:
    assert issubclass(asyncio.CancelledError, BaseException)
    record = admit(made, body("cancelled", "hasten_register_metrics"))
    assert "CancelledError: broken on purpose (<string>:" in str(record.error)

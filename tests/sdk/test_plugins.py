"""The plugin host: every plugin is loaded on its own, and a bad one is named instead of breaking the rest."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten import PluginError
from hasten._hookspecs import HOOKS
from hasten._plugins import BUILT_IN, Host, host
from hasten._registry import Registry

DOCS = Path(__file__).parents[2] / "docs" / "plugins.md"
EXAMPLES = Path(__file__).parents[2] / "examples"


def distribution(folder: Path, name: str, module: str, source: str, version: str = "1.2") -> None:
    """A minimal installed distribution with one entry point of our group."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[hasten]\n{module} = {module}\n")
    (folder / f"{module}.py").write_text(source)


METRIC = """
import hasten
@hasten.hookimpl
def hasten_register_metrics(register):
    register("sharpness", lambda: None, "how sharp")
"""


def test_broken_distribution_is_recorded_and_the_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "broken-dist", "broken_plugin_a", "import a_module_that_is_missing")
    distribution(tmp_path, "exits-dist", "broken_plugin_b", "raise SystemExit('no')")
    distribution(tmp_path, "good-dist", "good_plugin", METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Host(built_in=("hasten.no_such_module",))
    records = {record.name: record for record in made.plugins}
    assert records["broken_plugin_a"].error == (
        "ModuleNotFoundError: No module named 'a_module_that_is_missing'"
    )
    assert (records["broken_plugin_a"].distribution, records["broken_plugin_a"].version) == (
        "broken-dist",
        "1.2",
    )
    assert records["broken_plugin_b"].error == "SystemExit: no"
    assert records["good_plugin"].provides == ("metric sharpness",)
    assert "ModuleNotFoundError" in str(records["hasten.no_such_module"].error)
    assert made.metric("sharpness").summary == "how sharp"
    for missing in (made.technique, made.metric):
        with pytest.raises(hasten.ConfigError) as caught:
            missing("sharpnes")
        assert "Plugins that failed to load: " in str(caught.value)
        assert "broken_plugin_a (broken-dist 1.2): ModuleNotFoundError" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "blocked"),
    [("1", True), ("true", True), ("good-dist", True), ("x, good_plugin", True), ("0", False), ("x", False)],
)
def test_environment_blocks_external_plugins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, blocked: bool
) -> None:
    distribution(tmp_path, "good-dist", "good_plugin", METRIC)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HASTEN_BLOCK_PLUGINS", value)
    made = Host(built_in=())
    (record,) = (record for record in made.plugins if record.name == "good_plugin")
    assert record.blocked is blocked
    assert ("sharpness" in made.registry.metrics) is not blocked


def test_built_ins_come_in_through_the_same_hooks() -> None:
    made = Host(external=False)
    assert [record.name for record in made.plugins] == list(BUILT_IN)
    assert [record.error for record in made.plugins] == [None] * len(BUILT_IN)
    assert any("technique bottleneck" in record.provides for record in made.plugins)
    assert "adapter flux" in made.plugins[0].provides


def technique_plugin(technique: Any) -> Any:
    class Plugin:
        @hasten.hookimpl
        def hasten_register_techniques(self, register: Any) -> None:
            register(technique)

    return Plugin()


class Fine(hasten.Technique[hasten.TechniqueConfig]):
    name = "fine"
    summary = "fine"
    config_class = hasten.TechniqueConfig

    def claims(self, target: Any) -> list[Any]:
        return []

    def attach(self, target: Any, seams: Any) -> None:
        pass


class BadName(Fine):
    name = "Not Good"


class Reserved(Fine):
    name = "techniques"


class Loose(hasten.TechniqueConfig, extra="allow"):
    pass


class LooseConfig(Fine):
    config_class = Loose


class NamedConfig(hasten.TechniqueConfig):
    name: str = ""


class ReservedOption(Fine):
    config_class = NamedConfig


class Abstract(hasten.Technique[hasten.TechniqueConfig]):
    name = "abstract"
    config_class = hasten.TechniqueConfig


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (BadName, "technique name 'Not Good' must be lower-case"),
        (Reserved, "'techniques' must be"),
        (LooseConfig, "Loose must stay frozen and keep extra='forbid'"),
        (ReservedOption, "reserved option names: name"),
        (Abstract, "Abstract lacks summary, attach, claims"),
        (Fine(hasten.TechniqueConfig()), "is not a subclass of hasten.Technique"),
    ],
)
def test_invalid_techniques_are_refused(technique: Any, message: str) -> None:
    made = Host(built_in=(), external=False)
    with pytest.raises(PluginError, match=message):
        made.register(technique_plugin(technique), "bad")
    assert made.plugins == ()
    assert made.registry.techniques == {}


def test_name_taken_by_another_plugin_names_both() -> None:
    made = Host(built_in=(), external=False)
    undo = made.register(technique_plugin(Fine), "first")
    with pytest.raises(PluginError, match="'fine' is registered by the plugins 'second' and 'first'"):
        made.register(technique_plugin(Fine), "second")
    assert made.technique("fine") is Fine
    undo()
    made.register(technique_plugin(Fine), "second")
    assert made.registry.provided_by("second") == ("technique fine",)
    with pytest.raises(PluginError, match="'second' is already registered"):
        made.register(technique_plugin(Fine), "second")


def test_registration_is_all_or_nothing() -> None:
    class Half:
        @hasten.hookimpl
        def hasten_register_techniques(self, register: Any) -> None:
            register(Fine)
            register(BadName)

    made = Host(built_in=(), external=False)
    with pytest.raises(PluginError):
        made.register(Half(), "half")
    assert made.registry.techniques == {}
    assert made.registry.provided_by("half") == ()


def test_misspelt_hooks_and_arguments_are_refused() -> None:
    class Misspelt:
        @hasten.hookimpl
        def hasten_register_technique(self, register: Any) -> None: ...

    class WrongArgument:
        @hasten.hookimpl
        def hasten_plan(self, plans: Any) -> None: ...

    made = Host(built_in=(), external=False)
    with pytest.raises(PluginError, match="did you mean 'hasten_register_techniques'"):
        made.register(Misspelt(), "misspelt")
    with pytest.raises(PluginError, match="plans"):
        made.register(WrongArgument(), "wrong")


def test_most_specific_adapter_wins() -> None:
    from hasten._adapters.base import Adapter

    class Base: ...

    class Derived(Base): ...

    class Special(Derived): ...

    registry = Registry()
    registry.add_adapter("p", Adapter("general", ("Base",)))
    registry.add_adapter("p", Adapter("special", ("Derived",), refused={"Special": "it has no denoiser"}))
    assert registry.adapter(Base()).family == "general"
    assert registry.adapter(Derived()).family == "special"
    with pytest.raises(hasten.UnsupportedError, match="Special cannot be accelerated: it has no denoiser"):
        registry.adapter(Special())
    with pytest.raises(PluginError, match="'other' and 'special' both cover Derived"):
        registry.add_adapter("q", Adapter("other", ("Derived",)))


def test_plan_hook_annotates_and_refuses(flux: Any, register: Any) -> None:
    class Comments:
        @hasten.hookimpl
        def hasten_plan(self, plan: Any) -> Any:
            return [hasten.Finding(severity, f"saw {plan.pipeline}")]

    severity: Any = "note"
    register(Comments(), "commenter")
    assert hasten.plan(flux, ["scale"]).findings == (hasten.Finding("note", "commenter: saw FluxPipeline"),)
    severity = "error"
    with pytest.raises(
        hasten.UnsupportedError, match="refuses this FluxPipeline: commenter: saw FluxPipeline"
    ):
        hasten.accelerate(flux, ["scale"])


def test_failing_plan_hook_is_named(flux: Any, register: Any) -> None:
    class Fails:
        @hasten.hookimpl
        def hasten_plan(self, plan: Any) -> Any:
            raise KeyError("x")

    register(Fails(), "failing")
    with pytest.raises(PluginError, match="plugin failing failed in hasten_plan: KeyError"):
        hasten.plan(flux, ["scale"])


def test_run_finished_fires_once_per_call(flux: Any, run: Any, register: Any) -> None:
    reports = []

    class Twice(Fine):
        def attach(self, target: Any, seams: Any) -> None:
            seams.run(lambda call, proceed: (proceed(call), proceed(call))[1])

    class Listens:
        @hasten.hookimpl
        def hasten_run_finished(self, report: Any) -> None:
            assert "_compiled_call_impl" not in vars(flux.transformer)
            reports.append(report)

    register(Listens(), "listener")
    register(Twice)
    with hasten.accelerate(flux, ["fine", "scale"]) as accel:
        run(flux, "flux")
        assert reports == [accel.report()]
        assert len(reports[0].steps) == 4
        with pytest.raises(TypeError):
            run(flux, "flux", callback_on_step_end=lambda: None)
    assert reports[1].error.startswith("TypeError")


def test_failing_listener_costs_a_warning_not_the_image(flux: Any, run: Any, register: Any) -> None:
    class Fails:
        @hasten.hookimpl
        def hasten_run_finished(self, report: Any) -> None:
            raise OSError("disk full")

    register(Fails(), "dashboard")
    with (
        hasten.accelerate(flux, ["scale"]),
        pytest.warns(
            RuntimeWarning, match="plugin dashboard failed in hasten_run_finished: OSError: disk full"
        ),
    ):
        assert run(flux, "flux") is not None


def test_commands_are_added_and_a_failing_plugin_is_recorded(register: Any) -> None:
    class Adds:
        @hasten.hookimpl
        def hasten_register_commands(self, app: Any) -> None:
            app.append("command")

    class Fails:
        @hasten.hookimpl
        def hasten_register_commands(self, app: Any) -> None:
            raise ValueError("no")

    register(Fails(), "fails")
    register(Adds(), "adds")
    app: list[str] = []
    host().add_commands(app)
    assert "command" in app
    assert {record.name: record.error for record in host().plugins}["fails"] == "ValueError: no"


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.__name__)
def test_every_hook_is_documented_with_its_arguments(hook: Any) -> None:
    arguments = ", ".join(inspect.signature(hook).parameters)
    assert re.search(rf"^### `{hook.__name__}\({arguments}\)`$", DOCS.read_text(), re.MULTILINE)


def test_no_hook_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^### `(hasten_\w+)\(", DOCS.read_text(), re.MULTILINE)
    assert documented == [hook.__name__ for hook in HOOKS]


def test_the_guide_shows_the_tested_examples_as_they_are() -> None:
    folders = (
        EXAMPLES / "every_other",
        EXAMPLES / "own_adapter",
        EXAMPLES.parent / "plugins" / "guidance_interval",
    )
    sources = [path.read_text() for folder in folders for path in folder.glob("*.*") if path.is_file()]
    blocks = re.findall(r"<!-- sample -->\n```\w+\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(blocks) == 10
    for block in blocks:
        assert any(block in source for source in sources), block


@pytest.mark.parametrize("source", [DOCS, *EXAMPLES.glob("*/*.py")], ids=lambda path: path.name)
def test_nothing_private_is_imported_in_the_guide_and_the_examples(source: Path) -> None:
    imports = re.findall(r"^ *(?:from|import) hasten.*", source.read_text(), re.MULTILINE)
    assert [line for line in imports if re.search(r"[. ]_", line)] == []


def test_every_slot_is_documented() -> None:
    from hasten._claims import SLOTS

    text = DOCS.read_text()
    assert all(f"`{slot}`" in text for slot in SLOTS)

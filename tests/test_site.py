"""The reference lists every public name, and the hooks of the site make pages of forge Markdown and Sphinx roles."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
REFERENCE = (ROOT / "docs" / "api.md").read_text("utf-8")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", ["hasten", "hasten.extend", "hasten.testing"])
def test_every_public_name_is_in_the_reference(module: str) -> None:
    listed = set(re.findall(r"^::: ([\w.]+)$", REFERENCE, re.MULTILINE))
    public = set(importlib.import_module(module).__all__) - {
        "__version__",
        "TorchDispatchMode",
    }  # torch's own
    elsewhere = {name.rpartition(".")[2] for name in listed}
    assert {name for name in public if f"{module}.{name}" not in listed and name not in elsewhere} == set()


def test_every_metric_and_formula_is_in_the_reference() -> None:
    files = [*(ROOT / "eval" / "functional").glob("*.py"), *(ROOT / "eval" / "metrics").glob("*.py")]
    modules = {f"hasten.eval.{path.parent.name}.{path.stem}" for path in files if path.stem != "__init__"}
    assert {module for module in modules if f"::: {module}\n" not in REFERENCE} == set()


def test_every_hook_is_in_the_reference() -> None:
    from hasten._hookspecs import HOOKS

    assert re.findall(r"^::: hasten\._hookspecs\.(\w+)$", REFERENCE, re.MULTILINE) == [
        hook.__name__ for hook in HOOKS
    ]


@pytest.mark.parametrize(
    ("role", "code"),
    [
        (":class:<code>~hasten.Config</code>", '<a href="#hasten.Config"><code>Config</code></a>'),
        (":meth:<code>Config.of</code>", '<a href="#hasten.Config.of"><code>Config.of</code></a>'),
        (":func:<code>call</code>", "<code>call</code>"),
        (":func:<code>~somewhere.else_</code>", "<code>else_</code>"),
        ("<code>:class:</code>", "<code>:class:</code>"),
    ],
)
def test_roles_become_code_and_links(site: ModuleType, role: str, code: str) -> None:
    names = ("hasten.Config", "hasten.Config.of", "hasten.extend.Run.call", "hasten.extend.Other.call")
    anchors = "".join(f'<h3 id="{name}"></h3>' for name in names)
    assert site.on_page_content(f"{anchors}{role}") == f"{anchors}{code}"


def test_links_to_folders_become_text(site: ModuleType) -> None:
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "docs" / "plugins.md")))
    text = "[a](../examples/every_other), [b](api.md), [c](https://example.org)"
    assert site.on_page_markdown(text, page) == "a, [b](api.md), [c](https://example.org)"

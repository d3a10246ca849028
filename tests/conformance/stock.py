"""Tiny stock pipelines of every class, built by diffusers' own pipeline tests in a checkout of its repository."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import torch

__all__ = ["Stock", "stock_pipelines"]

_PACKAGE = "diffusers_checkout_tests"


class Stock:
    """One pipeline class as one of diffusers' tests builds and calls it.

    Args:
        tester: the test class, with ``pipeline_class``, ``get_dummy_components`` and ``get_dummy_inputs``.
    """

    def __init__(self, tester: type[Any]) -> None:
        self.tester = tester
        self.name: str = next(
            kind.__name__ for kind in tester.pipeline_class.__mro__ if hasattr(diffusers, kind.__name__)
        )
        self.enlarge = True
        """Whether sides are made longer than in the test; a few calls hold pictures of one size."""
        self.latent = True
        """Whether latents are asked for, which most pipelines can give."""

    def _instance(self) -> Any:
        return object.__new__(self.tester)

    def pipeline(self) -> Any:
        """A new pipeline, equal every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            components = self._instance().get_dummy_components()
            pipe = self.tester.pipeline_class(**components)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                _disturb(part)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self) -> dict[str, Any]:
        """Arguments of a cheap call, with a fresh generator."""
        instance = self._instance()
        given = inspect.signature(instance.get_dummy_inputs).parameters
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = instance.get_dummy_inputs(**({"device": "cpu"} if "device" in given else {}))
        accepted = inspect.signature(self.tester.pipeline_class.__call__).parameters
        if "output_type" in accepted and self.latent:
            inputs["output_type"] = "latent"
        if "num_inference_steps" in accepted:
            inputs["num_inference_steps"] = 3
        if "use_resolution_binning" in accepted:
            inputs["use_resolution_binning"] = False
        if inputs.get("num_frames") == _EVEN:
            inputs["num_frames"] = _EVEN + 1
        for side in ("height", "width"):
            if self.enlarge and isinstance(inputs.get(side), int):
                inputs[side] = max(inputs[side], _SIDE)
        return inputs


_EVEN = 8
"""A number of frames that no autoencoder with a first frame of its own can make."""
_SIDE = 64
"""Pixels per side of calls that name a size: several latent pixels, whatever the autoencoder."""


def _disturb(module: torch.nn.Module) -> None:
    """Constant parameters (zero-initialised outputs and gates) would hide part of the input."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if (
            parameter.numel() > 1
            and parameter.is_floating_point()
            and bool((parameter == parameter.flatten()[0]).all())
        ):
            parameter.data.add_(
                torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.02
            )


def _absent_packages() -> None:
    """Packages that test files import and that nothing here runs."""
    for name in ("parameterized", "requests_mock"):
        if importlib.util.find_spec(name) is None:
            sys.modules.setdefault(name, mock.MagicMock())


def stock_pipelines(checkout: Path, folders: Collection[str]) -> Iterator[Stock]:
    """One test class for each pipeline class that the checkout's tests build."""
    root = checkout / "tests"
    _absent_packages()
    package = importlib.util.spec_from_file_location(
        _PACKAGE, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert package is not None
    assert package.loader is not None
    module = importlib.util.module_from_spec(package)
    sys.modules[_PACKAGE] = module
    package.loader.exec_module(module)
    seen: set[str] = set()
    for path in sorted((root / "pipelines").rglob("test_*.py")):
        if folders and path.parent.name not in folders:
            continue
        if "get_dummy_components" not in path.read_text("utf-8"):
            continue
        name = ".".join((_PACKAGE, *path.relative_to(root).with_suffix("").parts))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = importlib.import_module(name)
        except Exception as error:  # a test file of another version, or one that needs a package
            warnings.warn(f"skipped {path.relative_to(root)}: {type(error).__name__}: {error}", stacklevel=2)
            continue
        for kind in vars(loaded).values():
            if not inspect.isclass(kind) or kind.__module__ != name:
                continue
            pipeline = getattr(kind, "pipeline_class", None)
            if not inspect.isclass(pipeline) or not hasattr(kind, "get_dummy_components"):
                continue
            if pipeline.__name__ not in seen:
                seen.add(pipeline.__name__)
                yield Stock(kind)

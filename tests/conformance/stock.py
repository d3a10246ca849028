"""Tiny stock pipelines of every class, built by diffusers' own pipeline tests in a checkout of its repository."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import PIL.Image
import torch

__all__ = ["Stock", "absent_packages", "stock_pipelines"]

_PACKAGE = "diffusers_checkout_tests"


class Stock:
    """One pipeline class as a test builds and calls it.

    Args:
        kind: the class.
        components: makes new components.
        inputs: makes the arguments of a call.
    """

    def __init__(
        self, kind: type[Any], components: Callable[[], dict[str, Any]], inputs: Callable[[], dict[str, Any]]
    ) -> None:
        self.kind, self._components, self._inputs = kind, components, inputs
        self.name: str = next(base.__name__ for base in kind.__mro__ if hasattr(diffusers, base.__name__))
        self.enlarge = True
        """Whether sides are made longer than in the test; a few calls hold pictures of one size."""
        self.latent = True
        """Whether latents are asked for, which most pipelines can give."""

    @classmethod
    def of(cls, tester: type[Any]) -> Stock:
        """The pipeline of one of diffusers' test classes."""
        instance = object.__new__(tester)  # test cases of unittest ask for the name of a test
        given = inspect.signature(instance.get_dummy_inputs).parameters
        known = {"device": "cpu"} if "device" in given else {}
        return cls(
            tester.pipeline_class,
            instance.get_dummy_components,
            functools.partial(instance.get_dummy_inputs, **known),
        )

    def like(
        self, name: str, components: Callable[[dict[str, Any]], Any], inputs: Callable[[dict[str, Any]], Any]
    ) -> Stock:
        """Another class from changed components, called with changed arguments."""
        return Stock(
            getattr(diffusers, name),
            lambda: components(self._components()),
            lambda: inputs(self._inputs()),
        )

    def pipeline(self) -> Any:
        """A new pipeline, equal every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe = self.kind(**self._components())
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
                _disturb(part)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def arguments(self, whole: bool = False) -> dict[str, Any]:
        """Arguments of a cheap call, with a fresh generator.

        Args:
            whole: let a mask select the whole picture instead of one half.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            inputs = self._inputs()
        accepted = inspect.signature(self.kind.__call__).parameters
        if "output_type" in accepted and self.latent:
            inputs["output_type"] = "latent"
        if "num_inference_steps" in accepted:
            inputs["num_inference_steps"] = 3
        if "strength" in inputs:  # as many steps are left
            inputs.update(num_inference_steps=4, strength=0.8)
        if "use_resolution_binning" in accepted:
            inputs["use_resolution_binning"] = False
        if inputs.get("num_frames") == _EVEN:
            inputs["num_frames"] = _EVEN + 1
        if inputs.get("mask_image") is not None:
            inputs["mask_image"] = _mask(inputs["mask_image"], whole)
        for side in ("height", "width"):
            if self.enlarge and isinstance(inputs.get(side), int):
                inputs[side] = max(inputs[side], _SIDE)
        return inputs


_EVEN = 8
"""A number of frames that no autoencoder with a first frame of its own can make."""
_SIDE = 64
"""Pixels per side of calls that name a size: several latent pixels, whatever the autoencoder."""


def _mask(like: Any, whole: bool) -> Any:
    """A mask of the same kind and size: some tests hold masks that select nothing."""
    if isinstance(like, list):
        return [_mask(one, whole) for one in like]
    if isinstance(like, PIL.Image.Image):
        values = np.full((like.height, like.width), 255, dtype=np.uint8)
        values[:, : 0 if whole else like.width // 2] = 0
        return PIL.Image.fromarray(values)
    mask = like * 0 + 1
    mask[..., : 0 if whole else like.shape[-1] // 2] = 0
    return mask


def _disturb(module: torch.nn.Module) -> None:
    """Constant parameters (zero-initialised outputs and gates) would hide part of the input."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if parameter.numel() <= 1 or not parameter.is_floating_point():
            continue
        if name.endswith("pad_token"):  # whatever was in memory before
            parameter.data.zero_()
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.data.add_(
                torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.02
            )


def absent_packages() -> None:
    """Packages that test files import and that nothing here runs."""
    for name in ("parameterized", "requests_mock"):
        if importlib.util.find_spec(name) is None:
            sys.modules.setdefault(name, mock.MagicMock())


def _complete(tester: type[Any]) -> bool:
    """Whether the class builds components by itself; those that others inherit from may ask for a kind of them."""
    make = getattr(tester, "get_dummy_components", None)
    if make is None:
        return False
    _, *given = inspect.signature(make).parameters.values()
    return all(
        parameter.default is not parameter.empty for parameter in given if parameter.kind not in _VARIABLE
    )


_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def stock_pipelines(checkout: Path, folders: Collection[str]) -> Iterator[Stock]:
    """One test class for each pipeline class that the checkout's tests build."""
    root = checkout / "tests"
    absent_packages()
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
            if not inspect.isclass(pipeline) or not _complete(kind):
                continue
            if pipeline.__name__ not in seen:
                seen.add(pipeline.__name__)
                yield Stock.of(kind)

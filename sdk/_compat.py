"""What `hasten` uses of torch, diffusers and accelerate although they keep it to themselves: each name written once.

``tests/sdk/test_compat.py`` proves every one of them with the versions in :data:`VERIFIED`. Another version may have
renamed one. Where its absence tells that, the error names the package, its version and the one verified; where absence
is ordinary (a module without hooks), only the tests can tell.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten._errors import UnsupportedError
from hasten._pipeline import Pipeline

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

__all__ = [
    "CALL_SLOT",
    "CUDNN",
    "EFFICIENT",
    "FLASH",
    "FLASH_CPU",
    "HOOK_REGISTRY",
    "MODULE_HOOKS",
    "MODULE_STORES",
    "VERIFIED",
    "TorchDispatchMode",
    "active_backend",
    "aten",
    "cache_config",
    "execution_device",
    "hooks_on",
    "keeps_state",
    "offload_hook",
    "plain_call",
    "processor_backend",
    "saved_in",
    "unwrapped",
    "version_counter",
]

VERIFIED = {"torch": "2.13.0", "diffusers": "0.42.1", "accelerate": "1.15.0"}
"""Package to the version that everything here was tested with."""

CALL_SLOT = "_compiled_call_impl"
"""torch: the attribute that ``nn.Module.__call__`` asks first and that ``module.compile()`` fills."""

HOOK_REGISTRY = "_diffusers_hook"
"""diffusers: the attribute of a module that holds its hooks (caches, offloading, layerwise casting)."""

MODULE_STORES = ("_parameters", "_buffers", "_modules")
"""torch: the dictionaries in which a module keeps what are no plain attributes."""

MODULE_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
)
"""torch: the dictionaries in which a module keeps its hooks."""

FLASH = "_scaled_dot_product_flash_attention"
FLASH_CPU = "_scaled_dot_product_flash_attention_for_cpu"
EFFICIENT = "_scaled_dot_product_efficient_attention"
CUDNN = "_scaled_dot_product_cudnn_attention"
"""torch: operators that return the log-sum-exp of attention beside its output, for :func:`aten`."""

_BACKEND = "_attention_backend"


def plain_call(module: nn.Module) -> Callable[..., Any]:
    """torch: what calling a module does where it is not compiled: hooks and forward.

    Raises:
        UnsupportedError: this version of torch has another name for it.
    """
    call: Callable[..., Any] = _private(module, "_call_impl", "torch")
    return call


def unwrapped(module: nn.Module) -> nn.Module:
    """torch: the module below a ``torch.compile`` wrapper, or the module itself.

    Raises:
        UnsupportedError: this version of torch has another name for it.
    """
    if type(module).__name__ != "OptimizedModule":
        return module
    inner: nn.Module = _private(module, "_orig_mod", "torch")
    return inner


def version_counter(tensor: Tensor) -> int:
    """torch: how often a tensor was written to. Tensors of inference mode have none.

    Raises:
        UnsupportedError: this version of torch has another name for it.
    """
    return int(_private(tensor, "_version", "torch"))


def aten(name: str) -> Any:
    """torch: an operator of ATen that has no public function, as ``"_scaled_dot_product_flash_attention"``.

    Raises:
        UnsupportedError: this version of torch has no such operator.
    """
    import torch

    return _private(torch.ops.aten, name, "torch")


def hooks_on(module: nn.Module) -> Mapping[str, Any]:
    """diffusers: the hooks on a module, by name; none where pipelines left an empty registry behind."""
    registry = vars(module).get(HOOK_REGISTRY)
    return {} if registry is None else dict(registry.hooks)


def keeps_state(hook: object) -> bool:
    """diffusers: whether a hook keeps something from one forward to the next, as caches do.

    Raises:
        UnsupportedError: this version of diffusers has another name for it.
    """
    return bool(_private(hook, "_is_stateful", "diffusers"))


def cache_config(module: nn.Module) -> Any:
    """diffusers: the configuration that ``enable_cache`` was called with, ``None`` without a cache."""
    return getattr(module, "_cache_config", None)


def processor_backend(processor: object) -> tuple[str, Any] | None:
    """diffusers: attribute and value of the attention backend of a processor; ``None`` where it never asks for one."""
    return (_BACKEND, getattr(processor, _BACKEND)) if hasattr(processor, _BACKEND) else None


def active_backend() -> Any:
    """diffusers: the attention backend of processors without one of their own.

    Raises:
        UnsupportedError: this version of diffusers has another name for it.
    """
    dispatch = importlib.import_module("diffusers.models.attention_dispatch")
    return _private(dispatch, "_AttentionBackendRegistry", "diffusers").get_active_backend()[0]


def execution_device(pipe: Pipeline) -> torch.device | None:
    """diffusers: where a pipeline computes, also while its modules wait elsewhere; ``None`` of a foreign object."""
    device: torch.device | None = getattr(pipe, "_execution_device", None)
    return device


def saved_in(pipe: Pipeline) -> Path | None:
    """diffusers: the folder (or the id on the hub, as a path) that a pipeline was loaded from, if any."""
    name = getattr(pipe, "config", {}).get("_name_or_path")
    return Path(str(name)) if name else None


def offload_hook(module: nn.Module) -> Any:
    """accelerate: the hook that moves a module's weights, ``None`` without one."""
    return getattr(module, "_hf_hook", None)


def _private(owner: object, name: str, package: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise UnsupportedError(
            f"{package} {version(package)} has no {where}.{name}, which hasten needs; it was tested with {package} "
            f"{VERIFIED[package]}: install that version"
        ) from error


def __getattr__(name: str) -> Any:
    if name == "TorchDispatchMode":  # imported when it is used: that loads torch
        return _private(importlib.import_module("torch.utils._python_dispatch"), name, "torch")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

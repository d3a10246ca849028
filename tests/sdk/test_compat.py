"""Every private name of torch, diffusers and accelerate does, as installed, what ``_compat`` says of it."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import FluxTransformer2DModel, PyramidAttentionBroadcastConfig
from diffusers.hooks import HookRegistry
from diffusers.hooks import ModelHook as DiffusersHook
from torch import nn

from hasten import UnsupportedError, _compat
from hasten._compat import (
    CALL_SLOT,
    CUDNN,
    EFFICIENT,
    FLASH,
    FLASH_CPU,
    MODULE_HOOKS,
    MODULE_STORES,
    VERIFIED,
    active_backend,
    aten,
    cache_config,
    hooks_on,
    keeps_state,
    offload_hook,
    plain_call,
    processor_backend,
    unwrapped,
    version_counter,
)

ROOT = Path(__file__).parents[2]


def test_the_versions_verified_are_those_that_are_pinned() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert {name: pins[name] for name in VERIFIED} == VERIFIED
    assert {name: version(name).partition("+")[0] for name in VERIFIED} == VERIFIED


def test_modules_keep_what_they_have_where_torch_says() -> None:
    module = nn.BatchNorm1d(2)
    module.child = nn.Linear(1, 1)
    held = [set(vars(module)[store]) for store in MODULE_STORES]
    assert held == [{"weight", "bias"}, {"running_mean", "running_var", "num_batches_tracked"}, {"child"}]
    assert set(MODULE_HOOKS) <= set(vars(module))


def test_the_call_slot_is_what_compiling_fills_and_calling_asks_first() -> None:
    module = nn.Linear(1, 1)
    assert plain_call(module) == module._call_impl
    module.compile(backend="eager")
    assert vars(module)[CALL_SLOT] is not None
    vars(module)[CALL_SLOT] = lambda x: "asked"
    assert module(None) == "asked"


def test_a_compile_wrapper_is_looked_through() -> None:
    module = nn.Linear(1, 1)
    assert unwrapped(module) is module
    assert unwrapped(torch.compile(module, backend="eager")) is module


def test_writes_to_a_tensor_are_counted() -> None:
    tensor = torch.zeros(1)
    before = version_counter(tensor)
    tensor.add_(1)
    assert version_counter(tensor) == before + 1


@pytest.mark.parametrize("name", [FLASH, FLASH_CPU, EFFICIENT, CUDNN, "_int_mm"])
def test_operators_exist(name: str) -> None:
    assert aten(name)


def test_hooks_of_diffusers_and_accelerate_are_seen() -> None:
    module = nn.Linear(1, 1)
    registry = HookRegistry.check_if_exists_or_initialize(module)
    assert hooks_on(module) == {}
    hook = DiffusersHook()
    registry.register_hook(hook, "ours")
    assert hooks_on(module) == {"ours": hook}
    assert not keeps_state(hook)
    assert offload_hook(module) is None
    moved = ModelHook()
    add_hook_to_module(module, moved)
    assert offload_hook(module) is moved


def test_caches_and_backends_of_a_denoiser_are_seen() -> None:
    flux = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=1,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    assert cache_config(flux) is None
    processor = next(iter(flux.attn_processors.values()))
    assert processor_backend(processor) == ("_attention_backend", None)
    flux.set_attention_backend("native")
    found = processor_backend(processor)
    assert found is not None
    assert found[1] == "native" == active_backend().value
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    flux.enable_cache(config)
    assert cache_config(flux) is config
    assert any(keeps_state(hook) for part in flux.modules() for hook in hooks_on(part).values())


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: aten("_no_such_operator"), r"torch 2\.\S+ has no \S*aten\S*\._no_such_operator"),
        (lambda: keeps_state(object()), r"diffusers 0\.\S+ has no object\._is_stateful"),
    ],
)
def test_a_missing_name_is_an_error_that_names_package_version_and_remedy(call, named) -> None:
    with pytest.raises(UnsupportedError, match=f"{named}.*tested with .* install that version"):
        call()


def test_the_dispatch_mode_is_torchs() -> None:
    assert issubclass(_compat.TorchDispatchMode, object)
    assert _compat.TorchDispatchMode.__name__ == "TorchDispatchMode"

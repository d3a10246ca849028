"""Every kernel against attention by definition in double precision."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from slow import attention, band_mask, box_mask, qkv

from hasten._adapters.tokens import TokenGrid
from hasten._errors import UnsupportedError
from hasten.plugins.rettention.kernels import Epilogue, SparseKernel, choose_kernel, load_kernel
from hasten.plugins.rettention.kernels.flex import FlexKernel
from hasten.plugins.rettention.kernels.fused import attend, operator, recorded
from hasten.plugins.rettention.kernels.packed import PackedKernel
from hasten.plugins.rettention.layout import SparseLayout
from hasten.plugins.rettention.masks import mask_shape
from hasten.plugins.rettention.operands import Operands


class LoopKernel(PackedKernel):
    """Packed sequences, one after the other: tests how tiles are packed where no packed kernel runs."""

    name = "loop"

    def refusal(self, device: Any, dtype: Any, dim: Any, layout: SparseLayout) -> str | None:
        return self.unfit(layout)

    def sequences(self, q: Any, k: Any, v: Any, lengths: Any, starts: Any, keys: Any, scale: float) -> Any:
        outputs, sums, first = [], [], 0
        for length, start, count in zip(lengths, starts, keys):
            parts = [
                x.transpose(0, 1)[None]
                for x in (q[first : first + length], *(y[start : start + count] for y in (k, v)))
            ]
            output, lse = (
                attend(*parts, scale)
                if count
                else (torch.zeros_like(parts[0]), torch.zeros(1, q.shape[1], length))
            )
            outputs.append(output[0].transpose(0, 1))
            sums.append(lse[0])
            first += length
        return torch.cat(outputs), torch.cat(sums, 1)


def kernel(name: str) -> SparseKernel:
    if name == "triton":
        pytest.importorskip("triton")
    return {"loop": LoopKernel, "flex": lambda: FlexKernel(compiled=False)}.get(
        name, lambda: load_kernel(name)
    )()  # type: ignore[arg-type]


KERNELS = ["gather", "loop", "flex", "triton"]
GRIDS = [
    TokenGrid(1, 6, 10),
    TokenGrid(1, 7, 8, before=5),
    TokenGrid(3, 4, 7, after=4),
    TokenGrid(2, 4, 9, before=3, after=2),
]
MODES = ["reference", "block", "block_exact_budget", "tile2d", "tile3d"]


def expected_mask(layout: SparseLayout, keep_ratio: float) -> torch.Tensor:
    shape = layout.shape
    if shape.half is not None:
        return band_mask(layout.grid, keep_ratio)
    return box_mask(layout.grid, shape.axes, shape.tile, shape.window)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_output_and_log_sum_exp(name, grid, mode):
    tile: Any = {"tile2d": 2, "tile3d": (1, 2, 2)}.get(mode, grid.positions // 5)
    layout = SparseLayout(mask_shape(mode, 0.4, tile, grid), grid)
    q, k, v = qkv(grid, heads=2, dim=12, batch=2, scale=2.0)
    chosen = kernel(name)
    if chosen.refusal(q.device, q.dtype, 12, layout):
        pytest.skip("refused")
    out = torch.empty(2, grid.tokens, 2, 12).transpose(1, 2)
    lse = chosen.attend(Operands(q, k, v, layout, 0.25), out, need_lse=True)
    expected, sums = attention(q, k, v, expected_mask(layout, 0.4), 0.25)
    assert (out - expected[:, :, layout.span]).abs().max() < 1e-5
    assert lse is not None
    assert (lse - sums[:, :, layout.span]).abs().max() < 1e-5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grid", [TokenGrid(5, 4, 7, after=4), TokenGrid(4, 4, 6, before=3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_queries_of_some_frames_are_those_rows_of_the_whole(name, grid, mode):
    tile: Any = {"tile2d": 2, "tile3d": (2, 2, 2)}.get(mode, grid.positions // 5)
    shape, frames = mask_shape(mode, 0.4, tile, grid), range(1, 4)
    layout = SparseLayout(shape, grid, frames=frames)
    q, k, v = qkv(grid, heads=2, dim=12, batch=2, scale=2.0)
    expected, sums = attention(q, k, v, expected_mask(layout, 0.4), 0.25)
    rows = slice(grid.before + grid.positions, grid.before + 4 * grid.positions)
    head, tail = q[:, :, : grid.before], q[:, :, grid.total - grid.after :]
    chosen = kernel(name)
    if chosen.refusal(q.device, q.dtype, 12, layout):
        pytest.skip("refused")
    out = torch.empty(2, layout.queries.tokens, 2, 12).transpose(1, 2)
    parts = Operands(torch.cat([head, q[:, :, rows], tail], 2), k, v, layout, 0.25)
    lse = chosen.attend(parts, out, need_lse=True)
    assert (out - expected[:, :, rows]).abs().max() < 1e-5
    assert lse is not None
    assert (lse - sums[:, :, rows]).abs().max() < 1e-5
    kept = expected_mask(layout, 0.4)[..., rows, :].sum() + grid.context * grid.total
    assert layout.density == pytest.approx(float(kept) / (layout.queries.total * grid.total))


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("grid", [GRIDS[0], GRIDS[3]], ids=str)
def test_epilogue(name, grid):
    layout = SparseLayout(mask_shape("block", 0.3, 4, grid), grid)
    q, k, v = qkv(grid)
    rho = torch.rand(1, 2, grid.tokens, 1)
    residual = torch.randn(1, 2, grid.tokens, 16)
    chosen = kernel(name)
    plain, reshaped = (torch.empty(1, 2, grid.tokens, 16) for _ in range(2))
    chosen.attend(Operands(q, k, v, layout, 0.25), plain)
    chosen.attend(Operands(q, k, v, layout, 0.25), reshaped, epilogue=Epilogue(rho, residual))
    assert torch.allclose(reshaped, rho * plain + residual, atol=1e-6)
    chosen.attend(Operands(q, k, v, layout, 0.25), reshaped, epilogue=Epilogue(None, residual.bfloat16()))
    assert torch.allclose(reshaped, plain + residual.bfloat16().float(), atol=1e-6)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "grid", [TokenGrid(1, 4, 12, after=5), TokenGrid(2, 4, 9, before=3, after=2)], ids=str
)
def test_hidden_text_keys_do_not_count(name, grid):
    layout = SparseLayout(mask_shape("block", 0.3, 12, grid), grid)
    q, k, v = qkv(grid, heads=1, batch=3)
    visible = torch.tensor([[True] * 5, [True, True, False, True, False], [False] * 5])
    out = torch.empty(3, 1, grid.tokens, 16)
    lse = kernel(name).attend(Operands(q, k, v, layout, 0.25, visible), out, need_lse=True)
    mask = expected_mask(layout, 0.3).repeat(3, 1, 1, 1)
    mask[:, :, :, layout.context_tokens] &= visible[:, None, None]
    expected, sums = attention(q, k, v, mask, 0.25)
    assert lse is not None
    assert (out - expected[:, :, layout.span]).abs().max() < 1e-5
    assert (lse - sums[:, :, layout.span]).abs().max() < 1e-5


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dim", [9, 40, 72])
def test_odd_heads(name, dim):
    grid = TokenGrid(1, 8, 8, before=3)
    layout = SparseLayout(mask_shape("block", 0.3, 8, grid), grid)
    q, k, v = qkv(grid, dim=dim)
    out = torch.empty(1, 2, grid.tokens, dim)
    kernel(name).attend(Operands(q, k, v, layout, dim**-0.5), out)
    expected, _ = attention(q, k, v, expected_mask(layout, 0.3))
    assert (out - expected[:, :, layout.span]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["gather", "loop", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_large_scores(name, dtype):
    if name == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies bfloat16 as if it were integers")
    grid = TokenGrid(1, 8, 8)
    layout = SparseLayout(mask_shape("block", 0.3, 8, grid), grid)
    q, k, v = (x.to(dtype) for x in qkv(grid, scale=5.0))
    out = torch.empty(1, 2, grid.tokens, 16, dtype=dtype)
    lse = kernel(name).attend(Operands(q, k, v, layout, 0.25), out, need_lse=True)
    expected, sums = attention(q, k, v, expected_mask(layout, 0.3), 0.25)
    assert lse is not None
    assert lse.dtype == torch.float32
    assert (lse - sums).abs().max() < 2e-3 * sums.abs().max()
    assert (out - expected).abs().max() < 2e-2 * expected.abs().max()


def test_statistics_at_a_thousand_tokens_are_exact_to_1e_5():
    grid = TokenGrid(1, 32, 32)
    q, k, v = qkv(grid, heads=4, dim=64)
    layout = SparseLayout(mask_shape("block", 0.0625, "auto", grid), grid)
    out = torch.empty(1, 4, grid.tokens, 64)
    lse = load_kernel("gather").attend(Operands(q, k, v, layout, 0.125), out, need_lse=True)
    mask = torch.zeros(grid.tokens, grid.tokens, dtype=torch.bool)
    for group in layout.groups:
        for tile in range(group.tiles):
            rows = torch.arange(group.size) + group.first + tile * group.size
            mask[rows[:, None], group.keys[tile][None]] = True
    expected, sums = attention(q, k, v, mask, 0.125)
    assert lse is not None
    assert (out - expected).abs().max() < 1e-5
    assert (lse - sums).abs().max() < 1e-5


def test_dense_log_sum_exp_is_a_by_product():
    q, k, v = qkv(TokenGrid(1, 6, 10), dim=12)

    def dense() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    output, lse, how = recorded(dense, q, k, 12**-0.5, None)
    assert how == "_scaled_dot_product_flash_attention_for_cpu"
    assert torch.equal(output, dense())
    assert (lse - attention(q, k, v)[1]).abs().max() < 1e-5


def test_a_backend_that_hides_its_log_sum_exp_costs_a_second_pass():
    q, k, v = qkv(TokenGrid(1, 6, 10))
    keep = torch.rand(1, 1, 1, 60) > 0.3
    _, lse, how = recorded(lambda: q * 0, q, k, 0.25, keep)
    assert how == "second pass"
    assert (lse - attention(q, k, v, keep)[1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["varlen", "triton", "flex"])
def test_a_kernel_that_cannot_serve_is_refused_and_not_replaced(name, monkeypatch):
    if name == "triton":
        pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    grid = TokenGrid(1, 8, 8)
    layout = SparseLayout(mask_shape("block", 0.3, 8, grid), grid)
    with pytest.raises(UnsupportedError, match=rf"kernel '{name}' cannot serve.*Set kernel='auto'"):
        choose_kernel(name, torch.device("cpu"), torch.float32, 16, layout)
    chosen, reason = choose_kernel("auto", torch.device("cpu"), torch.float32, 16, layout)
    assert chosen.name == "gather"
    assert reason == "the first choice on cpu"


def test_a_kernel_whose_package_is_missing_is_refused(monkeypatch):
    load_kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "xformers.ops.fmha", None)
    with pytest.raises(UnsupportedError, match=r"kernel 'xformers' cannot be loaded .*hasten\[gpu\]"):
        load_kernel("xformers")


@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_a_kernel_that_this_torch_is_too_old_for_is_refused(monkeypatch, name):
    load_kernel.cache_clear()
    module = {"flex": "torch.nn.attention.flex_attention", "varlen": "torch.nn.attention.varlen"}[name]
    monkeypatch.delattr(import_module(module), "AuxRequest")
    with pytest.raises(
        UnsupportedError, match=rf"kernel '{name}' cannot be loaded .*AuxRequest.*newer torch"
    ):
        load_kernel(name)


@pytest.mark.parametrize(
    ("capability", "dtype", "masked", "expected"),
    [
        ((8, 0), torch.float16, False, "flash"),
        ((8, 0), torch.float16, True, "efficient"),
        ((8, 0), torch.float32, False, "efficient"),
        ((7, 5), torch.float16, False, "efficient"),
        ((9, 0), torch.float64, False, "math"),
    ],
)
def test_the_operator_is_one_that_the_device_has(monkeypatch, capability, dtype, masked, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert expected in operator(torch.device("cuda"), dtype, masked)


def test_bfloat16_on_an_older_device_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    layout = SparseLayout(mask_shape("block", 0.3, 8, grid := TokenGrid(1, 8, 8)), grid)
    reason = load_kernel("varlen").refusal(torch.device("cuda"), torch.bfloat16, 64, layout)
    assert reason == "bfloat16 needs compute capability 8.0 or later; load the pipeline in float16"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["varlen", "flex", "triton", "xformers"])
def test_gpu_kernels_agree_with_the_gather_kernel(name):
    grid = TokenGrid(13, 10, 15, before=226)
    layout = SparseLayout(mask_shape("block", 0.0625, "auto", grid), grid, "cuda")
    q, k, v = (x.cuda().bfloat16() for x in qkv(grid, heads=4, dim=64, batch=2))
    results = []
    for each in ("gather", name):
        out = torch.empty(2, 4, grid.tokens, 64, device="cuda", dtype=torch.bfloat16)
        lse = choose_kernel(each, out.device, out.dtype, 64, layout)[0].attend(
            Operands(q, k, v, layout, 0.125), out, need_lse=True
        )
        assert lse is not None
        results.append((out, lse))
    (expected, sums), (out, lse) = results
    assert torch.allclose(out, expected, atol=2e-2)
    assert torch.allclose(lse.float(), sums.float(), atol=2e-2)

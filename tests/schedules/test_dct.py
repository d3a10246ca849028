import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hasten.schedules.dct import cosine_basis, dct_expand, dct_truncate, truncation_matrix
from hasten.schedules.lanczos import lanczos_matrix, lanczos_resize

SIZES = [(64, 32), (64, 40), (96, 64), (45, 30)]


def reference_truncation(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Transform, cut the corner, transform back: the definition, by another library."""
    corner = scipy.fft.dctn(x, axes=(-2, -1), norm="ortho")[..., :height, :width]
    return scipy.fft.idctn(corner, axes=(-2, -1), norm="ortho")


@pytest.mark.parametrize(("full", "low"), SIZES)
def test_rows_are_orthonormal(full, low):
    matrix = truncation_matrix(full, low)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(low), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("full", "low"), SIZES)
def test_white_noise_stays_white(full, low):
    noise = torch.randn(200, full, full, generator=torch.Generator().manual_seed(0))
    small = dct_truncate(noise, low, low)
    assert small.var().item() == pytest.approx(1.0, abs=0.03)
    neighbours = (small[..., 1:] * small[..., :-1]).mean().item()
    assert neighbours == pytest.approx(0.0, abs=0.03)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_matches_scipy(data):
    full = [data.draw(st.integers(2, 40)) for _ in range(2)]
    low = [data.draw(st.integers(1, side)) for side in full]
    x = np.random.default_rng(0).standard_normal((2, *full))
    np.testing.assert_allclose(dct_truncate(torch.tensor(x), *low), reference_truncation(x, *low), atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_truncate_undoes_expand(data):
    low = [data.draw(st.integers(1, 20)) for _ in range(2)]
    full = [data.draw(st.integers(side, 40)) for side in low]
    x = torch.randn(3, *low, dtype=torch.float64)
    torch.testing.assert_close(dct_truncate(dct_expand(x, *full), *low), x)


def test_expand_is_the_transpose_of_truncate():
    x, y = torch.randn(9, 12, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    torch.testing.assert_close((dct_truncate(x, 6, 5) * y).sum(), (x * dct_expand(y, 9, 12)).sum())


def test_flat_picture_is_amplified_by_the_amplitude_ratio():
    small = dct_truncate(torch.ones(16, 24), 8, 12)
    torch.testing.assert_close(small, torch.full((8, 12), 2.0))


def test_taper_fades_the_edge_of_the_band_only():
    frequencies = torch.eye(8, dtype=torch.float64)
    small = cosine_basis(8, torch.float64).T @ frequencies
    weights = (
        cosine_basis(16, torch.float64)[:8] @ truncation_matrix(16, 8, 3, torch.float64).T @ small
    ).diagonal()
    torch.testing.assert_close(weights[:5], torch.ones(5, dtype=torch.float64))
    assert (weights[5:].diff() < 0).all()
    assert 0 < weights[-1] < 0.2


def test_half_precision_is_computed_in_single_precision():
    x = torch.randn(32, 32).bfloat16()
    small = dct_truncate(x, 16, 16)
    assert small.dtype == torch.bfloat16
    torch.testing.assert_close(small, dct_truncate(x.float(), 16, 16).bfloat16(), atol=0, rtol=0)


def test_autocast_does_not_round_the_matrices():
    x = torch.randn(32, 32)
    expected = dct_truncate(x, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(dct_truncate(x, 16, 16), expected, atol=0, rtol=0)


def test_matrices_made_in_inference_mode_serve_gradients_later():
    with torch.inference_mode():
        dct_truncate(torch.randn(23, 23), 7, 7)
    x = torch.randn(23, 23, requires_grad=True)
    dct_truncate(x, 7, 7).sum().backward()
    assert x.grad is not None


def test_runs_on_meta_tensors():
    assert dct_truncate(torch.empty(2, 16, 16, device="meta"), 8, 4).shape == (2, 8, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dct_truncate(torch.zeros(8, 8), 9, 4), "low=9 and full=8"),
        (lambda: dct_truncate(torch.zeros(8, 8), 0, 4), "low=0"),
        (lambda: dct_expand(torch.zeros(8, 8), 16, 16, taper=8), r"taper must be in \[0, 8\)"),
        (lambda: cosine_basis(0), "at least 1"),
        (lambda: lanczos_matrix(0, 4), "at least 1"),
    ],
)
def test_bad_sizes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("resize", [dct_truncate, lanczos_resize])
def test_integers_are_refused(resize):
    with pytest.raises(TypeError, match="floating-point"):
        resize(torch.zeros(8, 8, dtype=torch.int64), 4, 4)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 40)] * 4))
def test_lanczos_matches_pillow(sides):
    height, width, new_height, new_width = sides
    x = np.random.default_rng(1).standard_normal((height, width)).astype(np.float32)
    expected = np.array(Image.fromarray(x).resize((new_width, new_height), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(lanczos_resize(torch.tensor(x), new_height, new_width), expected, atol=2e-5)


def test_lanczos_noise_statistics_are_those_of_an_interpolation():
    """The reason the state itself is never interpolated: noise loses variance and gains correlation."""
    small = lanczos_resize(torch.randn(100, 64, 64, generator=torch.Generator().manual_seed(0)), 32, 32)
    assert small.var().item() == pytest.approx(0.20, abs=0.02)
    assert math.sqrt(small.var().item()) < 0.5

"""The spectrum tool: images in, a law out, and the command around it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from typer.testing import CliRunner

import hasten._load
from hasten._cli import build_app
from hasten._errors import CheckpointError, ConfigError, UnsupportedError
from hasten.plugins.bottleneck.commands import _merge
from hasten.plugins.bottleneck.fit import encode, fit_folder
from hasten.schedules.spectrum import Spectrum


class Identity(torch.nn.Module):
    """An autoencoder whose latents are the picture."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.config = config

    def encode(self, pixels: torch.Tensor) -> Any:
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: pixels))


def picture(exponent: float, side: int, seed: int) -> Image.Image:
    """A grey Gaussian field with power ``w^-exponent``."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(side)[:, None] * side, np.fft.fftfreq(side)[None] * side
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.standard_normal((side, side))) * frequency ** (-exponent / 2)).real
    grey = np.clip(127.5 + 40 * field / field.std(), 0, 255).astype(np.uint8)
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "deeper").mkdir()
    for index in range(12):
        picture(2.0, 64, index).save(folder / ("deeper" if index % 2 else ".") / f"{index}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_the_law_of_the_pictures_is_recovered(photographs):
    fitted = fit_folder(Identity(scaling_factor=1.0), photographs, 64)
    assert fitted.images == 12
    assert fitted.spectrum.exponent == pytest.approx(2.0, abs=0.15)


def test_scaling_scales_the_amplitude_only(photographs):
    one, two = (
        fit_folder(Identity(scaling_factor=s, shift_factor=0.3), photographs, 64, 4) for s in (1.0, 2.0)
    )
    assert two.spectrum.amplitude == pytest.approx(4 * one.spectrum.amplitude)
    assert two.spectrum.exponent == pytest.approx(one.spectrum.exponent)
    assert two.images == 4


def test_units_follow_each_kind_of_autoencoder():
    pixels = torch.rand(1, 3, 16, 16)
    means, deviations = [0.1, 0.2, 0.3], [1.0, 2.0, 4.0]
    torch.testing.assert_close(
        encode(Identity(scaling_factor=2.0, shift_factor=0.5), pixels), (pixels - 0.5) * 2
    )
    expected = (pixels - torch.tensor(means).view(1, 3, 1, 1)) / torch.tensor(deviations).view(1, 3, 1, 1)
    normalised = Identity(latents_mean=means, latents_std=deviations)
    torch.testing.assert_close(encode(normalised, pixels), expected)
    with pytest.raises(UnsupportedError, match="pass them as spectrum"):
        encode(Identity(), pixels)


@pytest.mark.parametrize("family", ["flux", "wan", "sdxl"])
def test_real_autoencoders_encode(family):
    vae = FAMILIES[family]().vae
    latent = encode(vae, torch.rand(1, 3, 64, 64) * 2 - 1)
    assert latent.ndim == 4
    assert torch.isfinite(latent).all()


def test_deep_compression_autoencoders_encode():
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        scaling_factor=0.4,
    )
    assert encode(vae, torch.rand(1, 3, 32, 32)).shape[1] == 4


def test_unusable_folders_are_explained(tmp_path, photographs):
    vae = Identity(scaling_factor=1.0)
    with pytest.raises(ConfigError, match="is not a folder"):
        fit_folder(vae, tmp_path / "nowhere", 64)
    with pytest.raises(ConfigError, match="no image"):
        fit_folder(vae, tmp_path, 64)
    with pytest.raises(ConfigError, match="at least 128 x 128 pixels"):
        fit_folder(vae, photographs, 128)
    (tmp_path / "torn.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(ConfigError, match=r"torn\.png cannot be read"):
        fit_folder(vae, tmp_path, 64)
    (tmp_path / "torn.png").unlink()
    Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path / "flat.png")
    with pytest.raises(ConfigError, match="constant"):
        fit_folder(vae, tmp_path, 64)


def test_links_are_followed_and_16_bits_are_not_white(tmp_path, photographs):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photographs").symlink_to(photographs)
    (tmp_path / "links" / "x.heic").write_bytes(b"x")
    vae = Identity(scaling_factor=1.0)
    assert fit_folder(vae, tmp_path / "links", 64) == fit_folder(vae, photographs, 64)
    (tmp_path / "deep").mkdir()
    (tmp_path / "flat").mkdir()
    grey = Image.open(next(photographs.iterdir())).convert("L")
    grey.save(tmp_path / "flat" / "0.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / "deep" / "0.png")
    assert fit_folder(vae, tmp_path / "deep", 64) == fit_folder(vae, tmp_path / "flat", 64)
    with pytest.raises(ConfigError, match=r"Not read: \.heic files, an unsupported format: 1"):
        fit_folder(vae, tmp_path / "links", 4096)


@pytest.fixture
def stub_model(monkeypatch):
    pipe = FAMILIES["sd3"]()
    monkeypatch.setattr(hasten._load, "load", lambda name: pipe)
    pipe.register_modules(vae=FAMILIES["sd3"]().vae)
    return pipe


def test_the_command_prints_and_writes_json(photographs, stub_model, tmp_path):
    out = tmp_path / "hasten.json"
    out.write_text(json.dumps({"prompts": "kept"}))
    result = CliRunner().invoke(
        build_app(),
        ["spectrum", "anything", str(photographs), "--side", "64", "--limit", "3", "--out", str(out)],
    )
    assert result.exit_code == 0, result.output
    printed, written = json.loads(result.stdout), json.loads(out.read_text())
    assert written == {"prompts": "kept", **printed}
    assert printed["spectrum"].keys() == {"A", "beta", "images", "side"}
    Spectrum(printed["spectrum"]["A"], printed["spectrum"]["beta"])


def test_the_command_explains_failure(photographs, stub_model):
    result = CliRunner().invoke(build_app(), ["spectrum", "anything", str(photographs), "--side", "4096"])
    assert result.exit_code == 2
    assert "4096" in result.stderr


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path, text):
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match="remove it or choose another file"):
        _merge(path, {"spectrum": {}})
    assert path.read_text() == text

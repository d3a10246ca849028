"""Feature networks of set metrics: any module behind one of the published preprocessing presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint
from hasten.eval.functional.resize import (
    Resizer,
    pil_float,
    tf1_bilinear,
    torch_antialias,
    torch_noalias,
)
from hasten.eval.networks.inception import SIDE, load_inception
from hasten.eval.networks.network import Network, inference
from hasten.eval.pictures.images import check_images
from hasten.extend import ConfigError, suggestion


@dataclass(frozen=True)
class Preset:
    """How canonical images become the input of a feature network.

    Attributes:
        name: what the fingerprint calls it.
        resize: resizes to ``size``, float 0..255; ``None`` hands the uint8 images over as they are.
        size: (height, width).
        offset: subtracted from the 0..255 values.
        scale: divisor after that.
    """

    name: str
    resize: Resizer | None
    size: tuple[int, int] = (SIDE, SIDE)
    offset: float = 128.0
    scale: float = 128.0

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` to the network's input."""
        if self.resize is None:
            return check_images(images)
        return (self.resize(images, self.size) - self.offset) / self.scale


#: ``clean``: clean-fid. ``tf``: the original, torch-fidelity, ADM-style evaluators. ``pytorch``: pytorch-fid.
#: ``torchmetrics``: its default from 1.8 on. ``uint8``: the images untouched, as torchmetrics calls own
#: modules.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("clean", pil_float),
        Preset("tf", tf1_bilinear),
        Preset("pytorch", torch_noalias, offset=127.5, scale=127.5),
        Preset("torchmetrics", torch_antialias),
        Preset("uint8", None),
    )
}

_ALIASES = {"legacy_tensorflow": "tf", "legacy_pytorch": "pytorch"}


def find_preset(name: str) -> Preset:
    """The preset of that name (or of clean-fid's name for it).

    Raises:
        ConfigError: if there is none.
    """
    preset = PRESETS.get(_ALIASES.get(name, name))
    if preset is None:
        raise ConfigError(
            f"there is no preprocessing preset {name!r}, only {', '.join(PRESETS)}{suggestion(name, PRESETS)}"
        )
    return preset


class FeatureNetwork(Network):
    """A module that makes feature vectors of images, with its preprocessing.

    Args:
        module: ``[N, ...] -> [N, d]``, or ``[N, d, h, w]``, which is averaged over positions; a tuple's first
            entry counts.
        preprocess: from uint8 ``[N, 3, H, W]`` to the module's input.
        name: what the fingerprint calls the network.
        preprocessing: what it calls the preprocessing.
        device: where to run; the module is moved there.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocess: Callable[[Tensor], Tensor],
        *,
        name: str,
        preprocessing: str,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(module, name, device)
        self.preprocessing = preprocessing
        self._preprocess = preprocess

    def __call__(self, images: Tensor) -> Tensor:
        """Features of uint8 images ``[N, 3, H, W]``: float32 ``[N, d]`` on the CPU.

        Raises:
            ConfigError: if the images are not canonical or the module returns no vector per image.
        """
        check_images(images)
        with inference(self.model):
            output = self.model(self._preprocess(images).to(self.device))
        features = output[0] if isinstance(output, tuple | list) else output
        if isinstance(features, Tensor) and features.ndim == 4:
            features = features.mean((2, 3))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ConfigError(
                f"the feature network {self.name} must return one vector per image, not {shape}"
            )
        # Leaving inference mode behind lets the features take part in anything later.
        return features.to(device="cpu", dtype=torch.float32).clone()

    @cached_property
    def dimension(self) -> int:
        """Length of the features: the module's ``num_features``, else measured on a grey image."""
        declared = getattr(self.model, "num_features", None)
        if isinstance(declared, int):
            return declared
        return self(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8)).shape[1]

    def fingerprint(self, metric: str, **details: object) -> Fingerprint:
        """What a figure of ``metric`` from these features was made with."""
        return Fingerprint(
            metric,
            network=self.name,
            weights=self.weights,
            preprocessing=self.preprocessing,
            details=details,
        )


def load_feature_network(
    network: nn.Module | FeatureNetwork | str | Path = "inception",
    *,
    preset: str | None = None,
    weights: str | Path | None = None,
    allow_download: bool = False,
    device: torch.device | str = "cpu",
) -> FeatureNetwork:
    """A feature network from whatever the user has.

    Args:
        network: ``"inception"``; a folder of a transformers CLIP model, whose image embedding is taken; any
            module; or a ready network, returned as it is.
        preset: preprocessing for Inception (default ``clean``) or a module (default ``uint8``). A CLIP folder
            brings its own.
        weights: Inception's weights file.
        allow_download: let Inception's weights be fetched.
        device: where to run.

    Raises:
        ConfigError: if there is no such network or weights file, or a preset is given where none applies.
    """
    if isinstance(network, FeatureNetwork):
        return network
    if isinstance(network, nn.Module):
        chosen = find_preset(preset or "uint8")
        name = type(network).__name__
        return FeatureNetwork(network, chosen, name=name, preprocessing=chosen.name, device=device)
    if network == "inception":
        chosen = find_preset(preset or "clean")
        module = load_inception(weights, allow_download=allow_download)
        return FeatureNetwork(
            module, chosen, name="inception-2015-12-05", preprocessing=chosen.name, device=device
        )
    from hasten.eval.networks.clip import ClipNetwork

    if preset is not None:
        raise ConfigError(f"a CLIP folder brings its own preprocessing; leave out the preset {preset!r}")
    clip = ClipNetwork.load(network, device=device)
    return clip.as_feature_network()

"""AlexNet's convolutions and the LPIPS heads: what LPIPS needs, from weights files alone."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.eval.fingerprint import Fingerprint, hash_weights
from hasten.eval.functional.lpips import lpips_distance, lpips_input
from hasten.eval.networks.network import inference
from hasten.eval.pictures.images import check_pair
from hasten.extend import CheckpointError, ConfigError
from hasten.weights import read_weights

#: Channels of the five taps.
CHANNELS = (64, 192, 384, 256, 256)


class AlexNetTaps(nn.Module):
    """The five convolutions of AlexNet (Krizhevsky 2014, one column), each tapped after its ReLU.

    Parameters are named as in torchvision's weights file (``features.0.weight`` to ``features.10.bias``).
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                "0": nn.Conv2d(3, 64, 11, stride=4, padding=2),
                "3": nn.Conv2d(64, 192, 5, padding=2),
                "6": nn.Conv2d(192, 384, 3, padding=1),
                "8": nn.Conv2d(384, 256, 3, padding=1),
                "10": nn.Conv2d(256, 256, 3, padding=1),
            }
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """``[N, 3, H, W]``, sides at least 63, to the five activations."""
        taps: list[Tensor] = []
        for index, convolution in enumerate(self.features.values()):
            if index in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(convolution(x))
            taps.append(x)
        return taps


class Lpips(nn.Module):
    """LPIPS v0.1 with AlexNet.

    Args:
        heads: ``[C_l]`` channel weights of the five layers.
    """

    def __init__(self, heads: list[Tensor]) -> None:
        super().__init__()
        if tuple(len(head) for head in heads) != CHANNELS:
            raise CheckpointError(
                f"LPIPS heads for AlexNet have {CHANNELS} channels; these weights have others"
            )
        self.network = AlexNetTaps()
        for index, head in enumerate(heads):
            self.register_buffer(f"head{index}", head)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of uint8 images ``[N, 3, H, W]`` at their own size: float64 ``[N]``.

        Raises:
            ConfigError: if the images can't be compared or have a side under 63 pixels.
        """
        check_pair(a, b)
        if min(a.shape[-2:]) < 63:
            raise ConfigError(f"LPIPS needs sides of at least 63 pixels, not {a.shape[-1]}x{a.shape[-2]}")
        heads = [self.get_buffer(f"head{index}") for index in range(len(CHANNELS))]
        device = heads[0].device
        with inference(self):
            first, second = (self.network(lpips_input(images.to(device))) for images in (a, b))
            return lpips_distance(first, second, heads).cpu().clone()

    def fingerprint(self) -> Fingerprint:
        """What its figures are made with."""
        return Fingerprint(
            "lpips",
            variant="v0.1 alex",
            network="alexnet",
            weights=hash_weights(self),
            preprocessing="native size",
        )


def _load(path: Path, what: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"there is no file with {what} at {path}")
    return read_weights(path)


def load_lpips(
    weights: str | Path, heads: str | Path | None = None, *, device: torch.device | str = "cpu"
) -> Lpips:
    """LPIPS from torchvision's AlexNet weights.

    Args:
        weights: ``alexnet-owt-7be5be79.pth`` (or any state dict with its ``features.*``).
        heads: LPIPS linear weights; default is the copy that comes with torchmetrics.
        device: where to run.

    Raises:
        ConfigError: if a file is missing.
        CheckpointError: if it holds something else.
    """
    if heads is None:
        folder = files("torchmetrics.functional.image") / "lpips_models"
        heads = Path(str(folder / "alex.pth"))
    linear = _load(Path(heads), "LPIPS heads")
    try:
        rows = [linear[f"lin{index}.model.1.weight"].flatten() for index in range(len(CHANNELS))]
    except KeyError as error:
        raise CheckpointError(f"{heads} holds no LPIPS heads: {error} is missing") from error
    model = Lpips(rows)
    state = _load(Path(weights), "AlexNet weights")
    state = {name: value for name, value in state.items() if name.startswith("features.")}
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{weights} holds no AlexNet of torchvision's layout: {error}") from error
    return model.to(device).eval()

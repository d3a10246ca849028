"""The Inception network of FID, defined here so that a weights file by path is all it needs.

It is the TensorFlow graph of 2015-12-05, not torchvision's Inception: average pools leave padding out of the
mean, the last block pools by maximum, and the head has 1008 classes (unused). Parameter names are those of
the two converted weights files in circulation, ``weights-inception-2015-12-05-6726825d.pth`` (torch-fidelity)
and ``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.extend import CheckpointError, ConfigError
from hasten.weights import check_fit, read_weights

#: Input side in pixels and length of the features.
SIDE, FEATURES = 299, 2048

#: File names looked for in torch's own cache.
WEIGHT_FILES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")

#: One convolution: name, output channels, kernel (height, width), stride. Stride 1 keeps the size.
Layer = tuple[str, int, tuple[int, int], int]


def _layer(name: str, channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1) -> Layer:
    return name, channels, (kernel, kernel) if isinstance(kernel, int) else kernel, stride


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int, padding: tuple[int, int]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, H', W']``."""
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """An Inception block: parallel chains of convolutions and a pooled branch, concatenated.

    Args:
        inputs: input channels.
        chains: the chains, in the order of concatenation.
        forks: for each chain, layers that all take its output and are concatenated (empty for none).
        pool: ``"average"`` (padding not counted), ``"maximum"`` (both stride 1) or ``"reduce"`` (maximum,
            stride 2).
        pooled: channels of the 1x1 convolution after the pool; 0 for none.
    """

    def __init__(
        self,
        inputs: int,
        chains: Sequence[Sequence[Layer]],
        pool: str,
        pooled: int = 0,
        forks: Sequence[Sequence[Layer]] = (),
    ) -> None:
        super().__init__()
        self._pool = pool
        self._forks = [[layer[0] for layer in fork] for fork in forks] or [[] for _ in chains]
        self._chains = [[layer[0] for layer in chain] for chain in chains]
        self.outputs = pooled or inputs
        for i, chain in enumerate(chains):
            width = inputs
            for layer in chain:
                width = self._add(width, layer)
            ends = [self._add(width, layer) for layer in (forks[i] if forks else ())]
            self.outputs += sum(ends) or width
        if pooled:
            self._add(inputs, _layer("branch_pool", pooled))

    def _add(self, inputs: int, layer: Layer) -> int:
        name, outputs, kernel, stride = layer
        padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        self.add_module(name, ConvNorm(inputs, outputs, kernel, stride, padding))
        return outputs

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "reduce":
            return F.max_pool2d(x, 3, stride=2)
        if self._pool == "maximum":
            x = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        pooled: Tensor = self.get_submodule("branch_pool")(x)
        return pooled

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W] -> [N, outputs, H', W']``."""
        results = []
        for chain, fork in zip(self._chains, self._forks, strict=True):
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            results += [self.get_submodule(name)(y) for name in fork] or [y]
        return torch.cat([*results, self._pooled(x)], dim=1)


def _block_a(inputs: int, pooled: int) -> Branches:
    chains = [
        [_layer("branch1x1", 64)],
        [_layer("branch5x5_1", 48), _layer("branch5x5_2", 64, 5)],
        [_layer("branch3x3dbl_1", 64), _layer("branch3x3dbl_2", 96, 3), _layer("branch3x3dbl_3", 96, 3)],
    ]
    return Branches(inputs, chains, "average", pooled)


def _block_b(inputs: int) -> Branches:
    chains = [
        [_layer("branch3x3", 384, 3, 2)],
        [_layer("branch3x3dbl_1", 64), _layer("branch3x3dbl_2", 96, 3), _layer("branch3x3dbl_3", 96, 3, 2)],
    ]
    return Branches(inputs, chains, "reduce")


def _block_c(inputs: int, width: int) -> Branches:
    row, column = (1, 7), (7, 1)
    double: list[tuple[int, int | tuple[int, int]]] = [
        (width, 1),
        (width, column),
        (width, row),
        (width, column),
        (192, row),
    ]
    chains = [
        [_layer("branch1x1", 192)],
        [_layer("branch7x7_1", width), _layer("branch7x7_2", width, row), _layer("branch7x7_3", 192, column)],
        [_layer(f"branch7x7dbl_{i}", channels, kernel) for i, (channels, kernel) in enumerate(double, 1)],
    ]
    return Branches(inputs, chains, "average", 192)


def _block_d(inputs: int) -> Branches:
    chains = [
        [_layer("branch3x3_1", 192), _layer("branch3x3_2", 320, 3, 2)],
        [
            _layer("branch7x7x3_1", 192),
            _layer("branch7x7x3_2", 192, (1, 7)),
            _layer("branch7x7x3_3", 192, (7, 1)),
            _layer("branch7x7x3_4", 192, 3, 2),
        ],
    ]
    return Branches(inputs, chains, "reduce")


def _block_e(inputs: int, pool: str) -> Branches:
    chains = [
        [_layer("branch1x1", 320)],
        [_layer("branch3x3_1", 384)],
        [_layer("branch3x3dbl_1", 448), _layer("branch3x3dbl_2", 384, 3)],
    ]
    forks = [
        [],
        [_layer("branch3x3_2a", 384, (1, 3)), _layer("branch3x3_2b", 384, (3, 1))],
        [_layer("branch3x3dbl_3a", 384, (1, 3)), _layer("branch3x3dbl_3b", 384, (3, 1))],
    ]
    return Branches(inputs, chains, pool, 192, forks)


class Inception(nn.Module):
    """Pool-3 features of the FID Inception network: float ``[N, 3, 299, 299]``, normalised, to ``[N,
    2048]``.
    """

    num_features = FEATURES

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, (3, 3), 2, (0, 0))
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3), 1, (0, 0))
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, (3, 3), 1, (1, 1))
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, (1, 1), 1, (0, 0))
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3), 1, (0, 0))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "maximum")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, 299, 299] -> [N, 2048]``."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))


def cached_weights() -> Path | None:
    """The published weights in torch's download cache, if they are there."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    return next((cache / name for name in WEIGHT_FILES if (cache / name).is_file()), None)


def load_inception(weights: str | Path | None = None, *, allow_download: bool = False) -> Inception:
    """The FID Inception network with its published weights.

    Args:
        weights: state-dict file. Without one, torch's download cache is looked through.
        allow_download: fetch the file through the ``fid`` extra (torch-fidelity) if it is nowhere.

    Raises:
        ConfigError: if there are no weights to be had.
        CheckpointError: if the file holds other parameters.
    """
    network = Inception()
    if weights is None:
        cached = cached_weights()
        if cached is None and not allow_download:
            raise ConfigError(
                f"FID needs Inception weights. Pass the path of {WEIGHT_FILES[0]}, or allow_download=True "
                f"with the "
                "extra installed (pip install 'hasten[fid]'), or use another feature network."
            )
        state = _state_of(cached) if cached is not None else _from_torch_fidelity()
    else:
        state = _state_of(Path(weights))
    # The classifier is not part of the features; pytorch-fid's file also lacks the batch counters.
    unused = ("fc.", "AuxLogits.")
    state = {name: value for name, value in state.items() if not name.startswith(unused)}
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    if missing or unexpected:
        named = ", ".join([*missing, *unexpected][:3])
        raise CheckpointError(
            f"{weights or 'the cached file'} is not an FID Inception state dict: {len(missing)} parameters "
            f"are missing, "
            f"{len(unexpected)} unknown ({named}, ...). It must be one of {', '.join(WEIGHT_FILES)}."
        )
    check_fit(
        {name: own[name] for name in state}, state, "the FID Inception network", weights or "the cached file"
    )
    network.load_state_dict(state, strict=False)
    return network.eval()


def _state_of(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ConfigError(f"there is no Inception weights file at {path}")
    return read_weights(path)


def _from_torch_fidelity() -> dict[str, Tensor]:
    if find_spec("torch_fidelity") is None:
        raise ConfigError("downloading the Inception weights needs the extra: pip install 'hasten[fid]'")
    extractor = import_module("torch_fidelity.feature_extractor_inceptionv3")
    network: torch.nn.Module = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    return network.state_dict()

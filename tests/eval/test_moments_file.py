"""Statistics files: what they record, those of other tools, and damage."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hasten._errors import CheckpointError, ConfigError
from hasten.eval.functional.moments import Moments
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.scoring.moments_file import Statistics, load_statistics, save_statistics


@pytest.fixture
def network(conv_features: nn.Module) -> FeatureNetwork:
    return load_feature_network(conv_features)


class TestStatisticsFiles:
    def statistics(self, network: FeatureNetwork, images: Tensor) -> Statistics:
        return Statistics(Moments.of(network(images)), network.fingerprint("features"), "the test images")

    def test_round_trip_records_what_made_it(
        self, network: FeatureNetwork, images: Tensor, tmp_path: Path
    ) -> None:
        made = self.statistics(network, images)
        save_statistics(tmp_path / "ref.npz", made)
        again = load_statistics(tmp_path / "ref.npz", expected=made.fingerprint)
        assert again.moments.n == 8
        assert torch.allclose(again.moments.scatter, made.moments.scatter, rtol=1e-12)
        assert (again.fingerprint, again.source) == (made.fingerprint, "the test images")

    def test_another_fingerprint_is_refused(
        self, network: FeatureNetwork, conv_features: nn.Module, images: Tensor, tmp_path: Path
    ) -> None:
        save_statistics(tmp_path / "ref.npz", self.statistics(network, images))
        other = load_feature_network(conv_features, preset="clean").fingerprint("features")
        with pytest.raises(ConfigError, match="preprocessing: 'clean' against 'uint8'"):
            load_statistics(tmp_path / "ref.npz", expected=other)

    def test_files_of_other_tools(self, network: FeatureNetwork, images: Tensor, tmp_path: Path) -> None:
        path = tmp_path / "fid.npz"
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
        with pytest.raises(ConfigError, match="sample size"):
            load_statistics(path)
        foreign = load_statistics(path, n=50)
        assert foreign.fingerprint is None
        assert torch.allclose(foreign.moments.covariance, torch.eye(3, dtype=torch.float64))
        with pytest.raises(ConfigError, match="does not record how"):
            load_statistics(path, n=50, expected=network.fingerprint("features"))
        np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
        with pytest.raises(CheckpointError, match="don't fit"):
            load_statistics(path, n=50)
        path.write_bytes(b"nothing")
        with pytest.raises(CheckpointError, match="mu and sigma"):
            load_statistics(path)

    def test_trust_takes_another_tools_file_for_the_same_network(
        self, network: FeatureNetwork, tmp_path: Path
    ) -> None:
        expected = network.fingerprint("features")
        np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3))
        assert load_statistics(tmp_path / "fid.npz", n=50, expected=expected, trust=True).moments.n == 50
        np.savez(tmp_path / "fid.npz", mu=np.zeros(3), sigma=np.eye(3), n=40)
        with pytest.raises(ConfigError, match="records 40 pictures, not 50"):
            load_statistics(tmp_path / "fid.npz", n=50)

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"mu": np.array([0.0, np.nan, 0.0])}, "mu of .* holds NaN or infinity"),
            ({"sigma": np.diag([1.0, np.inf, 1.0])}, "sigma of .* holds NaN or infinity"),
            ({"mu": np.zeros(3, dtype=complex)}, "mu of .* real numbers, not complex128"),
            ({"sigma": np.eye(3).astype(complex)}, "sigma of .* real numbers, not complex128"),
            ({"mu": np.array(["a", "b", "c"])}, "mu of .* real numbers"),
            ({"mu": np.zeros(3, dtype=bool)}, "mu of .* real numbers, not bool"),
            ({"sigma": np.diag([1.0, -1.0, 1.0])}, "negative variances"),
            ({"sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
            ({"n": np.int64(-5)}, "n of .* whole number of 2 or more, not -5"),
            ({"n": np.float64(2.5)}, "n of .* whole number"),
            ({"n": np.array([3, 4])}, "n of .* whole number"),
            ({"n": np.array(True)}, "n of .* whole number"),
            ({"made_by": np.array("{")}, "made_by of"),
            ({"made_by": np.array("[]")}, "made_by of"),
            ({"made_by": np.array('{"source": "", "fingerprint": {"x": 1}}')}, "made_by of"),
            ({"mu": np.array([{}], dtype=object)}, "mu and sigma"),
        ],
    )
    def test_numbers_that_are_no_statistics(
        self, tmp_path: Path, parts: dict[str, np.ndarray], message: str
    ) -> None:
        path = tmp_path / "ref.npz"
        np.savez(path, **{"mu": np.zeros(3), "sigma": np.eye(3), "n": np.int64(9), **parts})
        with pytest.raises(CheckpointError, match=message):
            load_statistics(path)

    def test_any_damage_is_typed(self, tmp_path: Path) -> None:
        path, rng = tmp_path / "ref.npz", np.random.default_rng(0)
        np.savez_compressed(path, mu=np.arange(9.0), sigma=np.eye(9), n=np.int64(9))
        whole = path.read_bytes()
        for _ in range(60):
            raw = bytearray(whole[: int(rng.integers(0, len(whole) + 1))])
            for at in rng.integers(0, max(1, len(raw)), 6 if raw else 0):
                raw[at] = int(rng.integers(0, 256))
            path.write_bytes(raw)
            with contextlib.suppress(ConfigError, CheckpointError):
                load_statistics(path)

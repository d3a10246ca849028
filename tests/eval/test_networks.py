"""Inception's architecture and loading, LPIPS, and the feature-network wrapper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hasten._errors import CheckpointError, ConfigError
from hasten.eval.fingerprint import Fingerprint, hash_weights, require_same
from hasten.eval.functional.lpips import lpips_distance
from hasten.eval.metric import Batch
from hasten.eval.metrics.fidelity import LpipsMetric
from hasten.eval.networks.alexnet import CHANNELS, AlexNetTaps, load_lpips
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.networks.inception import Branches, Inception, load_inception
from hasten.eval.networks.network import inference


@pytest.fixture(scope="module")
def inception() -> Inception:
    torch.manual_seed(0)
    return Inception().eval()


class TestInception:
    def test_is_the_published_graph(self, inception: Inception) -> None:
        # 21,785,568 is the published Inception-v3 without classifier and auxiliary head (23,834,568
        # parameters in the 1000-class network without the auxiliary head, of which 2,049,000 are the
        # classifier's).
        assert sum(p.numel() for p in inception.parameters()) == 21_785_568
        weights = {name: tuple(p.shape) for name, p in inception.named_parameters()}
        assert weights["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
        assert weights["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
        assert weights["Mixed_6c.branch7x7dbl_3.conv.weight"] == (160, 160, 1, 7)
        assert weights["Mixed_7b.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
        assert weights["Mixed_7c.branch1x1.bn.weight"] == (320,)

    def test_sizes_through_the_network(self, inception: Inception) -> None:
        seen: dict[str, tuple[int, ...]] = {}
        hooks = [
            part.register_forward_hook(
                lambda _m, _i, out, name=name: seen.update({name: tuple(out.shape[1:])})
            )
            for name, part in inception.named_children()
        ]
        with torch.inference_mode():
            features = inception(torch.zeros(1, 3, 299, 299))
        for hook in hooks:
            hook.remove()
        assert features.shape == (1, 2048)
        assert seen["Conv2d_2b_3x3"] == (64, 147, 147)
        assert seen["Conv2d_4a_3x3"] == (192, 71, 71)
        assert seen["Mixed_5d"] == (288, 35, 35)
        assert seen["Mixed_6e"] == (768, 17, 17)
        assert seen["Mixed_7a"] == (1280, 8, 8)
        assert seen["Mixed_7c"] == (2048, 8, 8)

    def test_pooling_of_the_tensorflow_graph(self, inception: Inception) -> None:
        def pooled(block: nn.Module) -> Tensor:
            assert isinstance(block, Branches)
            inputs = block.get_submodule("branch_pool")
            captured: list[Tensor] = []
            hook = inputs.register_forward_pre_hook(lambda _m, args: captured.append(args[0]))
            width = inputs.get_submodule("conv").in_channels
            x = torch.arange(float(width * 16)).view(1, width, 4, 4)
            block(x)
            hook.remove()
            return captured[0][0, 0]

        # A corner of the average sees four pixels and divides by four, not by nine.
        assert float(pooled(inception.Mixed_7b)[0, 0]) == pytest.approx((0 + 1 + 4 + 5) / 4)
        assert float(pooled(inception.Mixed_7c)[0, 0]) == 5
        assert inception.Mixed_6a._pool == "reduce"

    def test_loading(self, inception: Inception, tmp_path: Path) -> None:
        path = tmp_path / "weights.pth"
        state = inception.state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
        without_counters = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        torch.save(without_counters, path)
        loaded = load_inception(path)
        assert not loaded.training
        assert torch.equal(
            loaded.Mixed_6b.branch7x7_2.conv.weight, inception.Mixed_6b.branch7x7_2.conv.weight
        )
        del without_counters["Mixed_5b.branch1x1.conv.weight"]
        torch.save(without_counters, path)
        with pytest.raises(
            CheckpointError, match=r"1 parameters are missing.*Mixed_5b\.branch1x1\.conv\.weight"
        ):
            load_inception(path)

    def test_no_weights(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        with pytest.raises(ConfigError, match=r"hasten\[fid\]"):
            load_inception()
        with pytest.raises(ConfigError, match="no Inception weights file"):
            load_inception(tmp_path / "none.pth")
        (tmp_path / "text.pth").write_text("x")
        with pytest.raises(CheckpointError, match="can't be read"):
            load_inception(tmp_path / "text.pth")
        torch.save(torch.zeros(3), tmp_path / "tensor.pth")
        with pytest.raises(CheckpointError, match="holds a Tensor"):
            load_inception(tmp_path / "tensor.pth")


class TestFeatureNetwork:
    def test_dropout_is_off_and_the_mode_comes_back(self, images: Tensor) -> None:
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).train()
        network = FeatureNetwork(module, lambda x: x.float()[..., :4, :4], name="n", preprocessing="p")
        assert torch.equal(network(images), network(images))
        assert module.training
        assert not network(images).is_inference()

    def test_dimension(self, conv_features: nn.Module) -> None:
        assert load_feature_network(conv_features).dimension == 12
        maps = nn.Conv2d(3, 7, 3)
        network = FeatureNetwork(maps, lambda x: x.float(), name="n", preprocessing="p")
        assert network.dimension == 7

    def test_no_vector_per_image(self, images: Tensor) -> None:
        network = FeatureNetwork(nn.Identity(), lambda x: x.float()[:1, 0], name="n", preprocessing="p")
        with pytest.raises(ConfigError, match="one vector per image"):
            network(images)

    def test_tf32_is_off_inside(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            with inference(nn.Identity()):
                assert not torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cuda.matmul.allow_tf32
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False


class TestFingerprints:
    def test_weights_preset_and_details_count(self, conv_features: nn.Module) -> None:
        first = load_feature_network(conv_features).fingerprint("fid")
        assert first == load_feature_network(conv_features).fingerprint("fid")
        assert first.digest() != load_feature_network(conv_features, preset="tf").fingerprint("fid").digest()
        assert Fingerprint.from_dict(first.as_dict()) == first
        with pytest.raises(ConfigError, match="metric: 'fid' against 'kid'"):
            require_same(first, load_feature_network(conv_features).fingerprint("kid"))
        with pytest.raises(ConfigError, match="not a metric's fingerprint"):
            Fingerprint.from_dict({"colour": 1})

    def test_hash(self) -> None:
        layer = nn.Linear(3, 2)
        before = hash_weights(layer)
        assert before == hash_weights(layer)
        with torch.no_grad():
            layer.bias[0] += 1e-3
        assert hash_weights(layer) != before
        assert hash_weights(nn.BatchNorm2d(2).bfloat16()) != hash_weights(nn.BatchNorm2d(2))


class TestLpips:
    @pytest.fixture(scope="class")
    def weights(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
        torch.save({**AlexNetTaps().state_dict(), "classifier.1.weight": torch.zeros(2)}, path)
        return path

    @pytest.fixture(scope="class")
    def pictures(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(images[:4].float(), (72, 96)).to(torch.uint8)

    def test_is_a_distance(self, weights: Path, pictures: Tensor) -> None:
        metric = LpipsMetric(weights)

        def distance(a: Tensor, b: Tensor) -> Tensor:
            return metric.score(metric.embed(Batch(b, baseline=a)))

        other = pictures.flip(0)
        assert distance(pictures, pictures).tolist() == [0, 0, 0, 0]
        assert bool((distance(pictures, other) > 0).all())
        assert torch.allclose(distance(pictures, other), distance(other, pictures))
        assert metric.fingerprint().weights

    def test_equals_torchmetrics_with_the_same_backbone(self, weights: Path, pictures: Tensor) -> None:
        """Torchmetrics' own formula, run on our taps: its backbone needs torchvision."""
        from torchmetrics.functional.image import lpips as oracle

        model = load_lpips(weights)
        other = pictures.flip(0)
        scaling = oracle.ScalingLayer()
        inputs = [scaling(x.float() / 127.5 - 1) for x in (pictures, other)]
        expected = torch.zeros(4)
        with torch.inference_mode():
            for index, (a, b) in enumerate(zip(*map(model.network, inputs))):
                difference = (oracle._normalize_tensor(a) - oracle._normalize_tensor(b)) ** 2
                head = model.get_buffer(f"head{index}").view(1, -1, 1, 1)
                expected += oracle._spatial_average(nn.functional.conv2d(difference, head)).flatten()
        assert torch.allclose(model(pictures, other), expected.double(), rtol=1e-4)

    def test_small_activations_have_unit_length_as_published_and_not_as_in_torchmetrics(self) -> None:
        """The published code adds its epsilon to the norm, torchmetrics to the square under the root."""
        from torchmetrics.functional.image.lpips import _normalize_tensor

        small = torch.tensor([1e-4, 0]).view(1, 2, 1, 1)
        other = small.flip(1)
        assert float(_normalize_tensor(small)[0, 0]) == pytest.approx(0.5**0.5, rel=1e-4)
        assert float(lpips_distance([small], [other], [torch.ones(2)])) == pytest.approx(2, rel=1e-4)

    def test_by_hand(self) -> None:
        a, b = torch.tensor([3.0, 4]).view(1, 2, 1, 1), torch.tensor([4.0, 3]).view(1, 2, 1, 1)
        assert float(lpips_distance([a], [b], [torch.tensor([1.0, 2])])) == pytest.approx(0.04 * 3, rel=1e-6)

    def test_taps(self) -> None:
        shapes = [tuple(tap.shape[1:]) for tap in AlexNetTaps()(torch.zeros(1, 3, 224, 224))]
        assert tuple(shape[0] for shape in shapes) == CHANNELS
        assert [shape[1] for shape in shapes] == [55, 27, 13, 13, 13]

    def test_bad_files_and_sizes(self, weights: Path, images: Tensor, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no file with AlexNet"):
            load_lpips(tmp_path / "none.pth")
        torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match="no AlexNet"):
            load_lpips(tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=r"lin0\.model\.1\.weight"):
            load_lpips(weights, heads=weights)
        with pytest.raises(ConfigError, match="at least 63 pixels"):
            load_lpips(weights)(images, images)

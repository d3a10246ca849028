"""Folders, archives and arrays: order, bad files named and counted, worker processes, feature files."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hasten._errors import CheckpointError, ConfigError
from hasten.eval.features import (
    Statistics,
    atomic_write,
    extract_features,
    load_features,
    load_statistics,
    save_statistics,
    stream_moments,
)
from hasten.eval.functional.moments import Moments
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.sources import Loaded, batches, check_paired, open_source


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def folder(images: Tensor, tmp_path: Path) -> Path:
    # Written in another order than they sort in.
    for i in (3, 0, 7, 1, 2, 6, 5, 4):
        save(images[i], tmp_path / "set" / f"{i:03d}.png")
    return tmp_path / "set"


@pytest.fixture
def network(conv_features: nn.Module) -> FeatureNetwork:
    return load_feature_network(conv_features)


class TestReaders:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_folder_is_sorted_whoever_decodes(self, folder: Path, images: Tensor, workers: int) -> None:
        loaded = Loaded()
        delivered = torch.cat(list(batches(open_source(folder), loaded, batch_size=3, workers=workers)))
        assert torch.equal(delivered, images)
        assert loaded.keys == [f"{i:03d}" for i in range(8)]

    def test_nested_keys_hidden_and_other_files(self, folder: Path, images: Tensor) -> None:
        save(images[0], folder / "a" / "b.png")
        (folder / "notes.txt").write_text("x")
        (folder / ".DS_Store").write_text("x")
        source = open_source(folder)
        assert source.keys[-1] == "a/b"
        assert source.ignored == ("notes.txt",)
        save(images[0], folder / "000.jpg")
        with pytest.raises(ConfigError, match="two images of the key '000'"):
            open_source(folder)

    def test_manifest_order(self, folder: Path, images: Tensor) -> None:
        lines = [{"key": "last", "file": "007.png"}, {"key": "000"}]
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        source = open_source(folder)
        assert source.keys == ("last", "000")
        assert torch.equal(source.load(0), images[7])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"key": "000"}\nnot json', r"line 2: not a JSON object"),
            ('{"key": "000"}\n{"key": "000"}', r"line 2: the key '000' appears twice"),
            ('{"key": "nine"}', r"1 of 1 images .* nine\.png"),
        ],
    )
    def test_bad_manifests(self, folder: Path, text: str, message: str) -> None:
        (folder / "manifest.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=message):
            open_source(folder)

    def test_zip_and_npz(self, folder: Path, images: Tensor, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in sorted(folder.iterdir(), reverse=True):
                archive.write(path, path.name)
        np.savez_compressed(tmp_path / "set.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
        for name in ("set.zip", "set.npz"):
            source = open_source(tmp_path / name)
            assert torch.equal(torch.stack([source.load(i) for i in range(len(source))]), images)

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "bad.zip").write_text("no archive")
        np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3), dtype=np.float32))
        np.savez(tmp_path / "other.npz", mu=np.zeros(3))
        for name, message in (
            ("empty", "holds no images"),
            ("missing", "no folder"),
            ("bad.zip", "can't be read as a zip"),
            ("float.npz", "uint8 images"),
            ("other.npz", "under 'arr_0'"),
        ):
            with pytest.raises(ConfigError, match=message):
                open_source(tmp_path / name)

    def test_pairs(self, folder: Path, images: Tensor, tmp_path: Path) -> None:
        for i in range(8):
            save(images[i], tmp_path / "jpg" / f"{i:03d}.jpg")
        save(images[0], tmp_path / "one" / "000.png")
        first = open_source(folder)
        check_paired(first, open_source(folder))
        with pytest.raises(ConfigError, match=r"has 8 images .* 1; only in the first: .*'001'"):
            check_paired(first, open_source(tmp_path / "one"))
        with pytest.raises(ConfigError, match="lossy compression"):
            check_paired(first, open_source(tmp_path / "jpg"))


class TestBadImages:
    @pytest.fixture
    def broken(self, folder: Path) -> Path:
        whole = (folder / "002.png").read_bytes()
        (folder / "002.png").write_bytes(whole[: len(whole) // 2])
        (folder / "005.png").write_text("this is text")
        return folder

    @pytest.mark.parametrize("workers", [0, 1])
    def test_all_are_named_and_counted(self, broken: Path, network: FeatureNetwork, workers: int) -> None:
        with pytest.raises(ConfigError, match=r"2 of 8 images .*002\.png.*005\.png.*skip_bad"):
            extract_features(open_source(broken), network, workers=workers, batch_size=2)

    def test_skipping(self, broken: Path, network: FeatureNetwork, images: Tensor) -> None:
        features = extract_features(open_source(broken), network, skip_bad=True, batch_size=3)
        kept = [0, 1, 3, 4, 6, 7]
        assert features.keys == tuple(f"{i:03d}" for i in kept)
        assert set(features.bad) == {"002", "005"}
        assert torch.allclose(features.features, network(images[kept]), atol=1e-6)

    def test_nothing_left(self, folder: Path, network: FeatureNetwork) -> None:
        for path in folder.iterdir():
            path.write_text("x")
        with pytest.raises(ConfigError, match="None of the 8 images"):
            extract_features(open_source(folder), network, skip_bad=True)

    def test_transparency_is_a_bad_image(self, folder: Path, network: FeatureNetwork) -> None:
        Image.new("RGBA", (64, 48), (1, 2, 3, 100)).save(folder / "003.png")
        with pytest.raises(ConfigError, match=r"1 of 8 .*003\.png has transparent pixels"):
            extract_features(open_source(folder), network)

    def test_mixed_sizes_and_grey(self, folder: Path, network: FeatureNetwork, images: Tensor) -> None:
        save(images[1, :, :20, :30], folder / "001.png")
        Image.fromarray(images[2, 0].numpy()).save(folder / "002.png")
        features = extract_features(open_source(folder), network, batch_size=4)
        assert len(features) == 8
        assert torch.allclose(features.features[1], network(images[1:2, :, :20, :30])[0], atol=1e-6)
        grey = images[2:3, :1].expand(1, 3, -1, -1)
        assert torch.allclose(features.features[2], network(grey)[0], atol=1e-6)


class TestFeatureFiles:
    def test_round_trip(self, folder: Path, network: FeatureNetwork, tmp_path: Path) -> None:
        source = open_source(folder)
        path = tmp_path / "out" / "features.npy"
        made = extract_features(source, network, path=path)
        again = load_features(path)
        assert again.keys == made.keys
        assert torch.equal(again.features, made.features)
        assert again.fingerprint == made.fingerprint
        assert torch.equal(again.select(["005", "001"]), made.features[[5, 1]])
        with pytest.raises(ConfigError, match="'x'"):
            again.select(["x"])

    def test_skipped_images_leave_no_rows(
        self, folder: Path, network: FeatureNetwork, tmp_path: Path
    ) -> None:
        (folder / "000.png").write_text("x")
        extract_features(open_source(folder), network, path=tmp_path / "f.npy", skip_bad=True)
        assert load_features(tmp_path / "f.npy").features.shape == (7, 12)

    def test_shards_make_the_whole(self, folder: Path, network: FeatureNetwork) -> None:
        source = open_source(folder)
        whole, _ = stream_moments(source, network, batch_size=3)
        parts = [stream_moments(source, network, indices=r)[0] for r in (range(0, 3), range(3, 8), range(0))]
        merged = parts[0].merge(parts[1]).merge(parts[2])
        assert merged.n == whole.n == 8
        assert torch.allclose(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-12)

    def test_broken_files(self, folder: Path, network: FeatureNetwork, tmp_path: Path) -> None:
        path = tmp_path / "f.npy"
        with pytest.raises(ConfigError, match="no features"):
            load_features(path)
        extract_features(open_source(folder), network, path=path)
        np.save(path, np.zeros((3, 12), dtype=np.float32))
        with pytest.raises(CheckpointError, match="fewer features"):
            load_features(path)


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

    def test_a_failed_write_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "ref.npz"
        path.write_bytes(b"old")

        def full() -> None:
            with atomic_write(path) as file:
                file.write(b"half of the new")
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space"):
            full()
        assert path.read_bytes() == b"old"
        assert [p.name for p in tmp_path.iterdir()] == ["ref.npz"]


def test_png_bytes_are_read_from_archives_without_extraction(images: Tensor, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("deep/er/one.png", buffer.getvalue())
        archive.writestr("deep/readme.md", "x")
    source = open_source(tmp_path / "x.zip")
    assert source.keys == ("deep/er/one",)
    assert source.ignored == ("deep/readme.md",)
    assert torch.equal(source.load(0), images[0])

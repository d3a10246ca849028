"""Folders, archives and arrays: order, bad files named and counted, worker processes, feature files."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hasten._errors import ConfigError, HastenError
from hasten.eval.functional.moments import Moments
from hasten.eval.metric import Batch
from hasten.eval.metrics.sets import Fid
from hasten.eval.networks.features import FeatureNetwork, load_feature_network
from hasten.eval.pictures.loading import Loaded, batches
from hasten.eval.pictures.pairing import Order
from hasten.eval.pictures.sources import ImageSource, check_paired, open_source
from hasten.eval.scoring.kept import KeptMoments
from hasten.eval.scoring.moments_file import Statistics, save_statistics


def save(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def folder(images: Tensor, tmp_path: Path) -> Path:
    # Written in another order than they sort in.
    for i in (3, 0, 7, 1, 2, 6, 5, 4):
        save(images[i], tmp_path / "set" / f"{i:03d}.png")
    return tmp_path / "set"


def features(source: ImageSource, network: FeatureNetwork, **reading: Any) -> tuple[Tensor, Loaded]:
    """What a network makes of every picture, and which those are."""
    loaded = Loaded()
    return torch.cat([network(images) for images in batches(source, loaded, **reading)]), loaded


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


class TestDamagedAndForeign:
    """What other tools and broken transfers leave behind."""

    @pytest.fixture
    def archive(self, folder: Path, tmp_path: Path) -> Path:
        with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
        return tmp_path / "set.zip"

    def test_macos_archives(self, folder: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, f"imgs/{path.name}")
                archive.writestr(f"__MACOSX/imgs/._{path.name}", b"\0\5\x16\7Mac OS X")
                archive.writestr(f"imgs/._{path.name}", b"x")
            archive.writestr("imgs/0.heic", b"x")
        source = open_source(tmp_path / "mac.zip")
        assert source.keys == tuple(f"imgs/{i:03d}" for i in range(8))
        assert list(source.unread) == ["imgs/0.heic"]

    @staticmethod
    def patch(path: Path, local: int, central: int, value: int, only: int | None = None) -> None:
        """Set a byte in the headers of all members, or of one."""
        raw = bytearray(path.read_bytes())
        for signature, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
            at, number = -1, 0
            while (at := raw.find(signature, at + 1)) != -1:
                if only in (None, number):
                    raw[at + offset] = value
                number += 1
        path.write_bytes(raw)

    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize(
        ("local", "central", "value", "reason"),
        [(6, 8, 1, "is encrypted"), (8, 10, 99, "can't be unpacked here"), (8, 10, 14, "damaged")],
    )
    def test_members_that_cannot_be_unpacked(
        self, archive: Path, local: int, central: int, value: int, reason: str, workers: int
    ) -> None:
        self.patch(archive, local, central, value, only=2)
        with pytest.raises(ConfigError, match=rf"1 of 8 images .*002\.png of .*{reason}"):
            list(batches(open_source(archive), Loaded(), workers=workers))
        loaded = Loaded()
        list(batches(open_source(archive), loaded, workers=workers, skip_bad=True))
        assert len(loaded.keys) == 7
        assert list(loaded.bad) == ["002"]

    def test_any_damage_of_an_archive_is_typed(self, archive: Path) -> None:
        whole, rng = archive.read_bytes(), np.random.default_rng(0)
        for _ in range(60):
            raw = bytearray(whole[: int(rng.integers(len(whole) // 2, len(whole) + 1))])
            for at in rng.integers(0, len(raw), 8):
                raw[at] = int(rng.integers(0, 256))
            archive.write_bytes(raw)
            with contextlib.suppress(ConfigError):
                list(batches(open_source(archive), Loaded(), skip_bad=True))

    def test_arrays_of_pictures(self, images: Tensor, tmp_path: Path) -> None:
        np.save(tmp_path / "set.npy", images.permute(0, 2, 3, 1).numpy())
        source = open_source(tmp_path / "set.npy")
        assert torch.equal(torch.stack([source.load(i) for i in range(len(source))]), images)

    @pytest.mark.parametrize("suffix", [".npy", ".npz"])
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is empty"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:a\n", "Git LFS pointer"),
            (None, "damaged"),
        ],
    )
    def test_damaged_arrays(
        self, images: Tensor, tmp_path: Path, suffix: str, content: bytes | None, reason: str
    ) -> None:
        path = tmp_path / f"set{suffix}"
        pixels = images.permute(0, 2, 3, 1).numpy()
        np.save(path, pixels) if suffix == ".npy" else np.savez(path, arr_0=pixels)
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
        with pytest.raises(ConfigError, match=reason):
            open_source(path)

    def test_pickled_arrays_are_not_run(self, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", np.array([{}], dtype=object), allow_pickle=True)
        with pytest.raises(ConfigError, match="can't be read as an array"):
            open_source(tmp_path / "x.npy")


class TestOrder:
    def test_numbers_count(self, images: Tensor, tmp_path: Path) -> None:
        for i in range(8):
            save(images[i], tmp_path / "n" / f"{3 * i}.png")
        source = open_source(tmp_path / "n")
        assert source.keys == tuple(str(3 * i) for i in range(8))
        assert source.ambiguity == ""
        assert torch.equal(source.load(7), images[7])

    def test_other_names_need_a_choice(self, images: Tensor, tmp_path: Path) -> None:
        for i in (1, 2, 10):
            save(images[0], tmp_path / "n" / f"img_{i}.png")
        assert "give --order natural or --order lexicographic" in open_source(tmp_path / "n").ambiguity
        chosen = {order: open_source(tmp_path / "n", order=order) for order in Order}
        assert chosen[Order.natural].keys == ("img_1", "img_2", "img_10")
        assert chosen[Order.lexicographic].keys == ("img_1", "img_10", "img_2")
        assert {source.ambiguity for source in chosen.values()} == {""}

    def test_what_a_manifest_does_not_list_is_named(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "map.json").write_text('{"006.png": "six", "000": "nought"}')
        source = open_source(folder, manifest=tmp_path / "map.json")
        assert source.keys == ("006", "000")
        assert source.prompts == {"006": "six", "000": "nought"}
        assert "pictures that the manifest does not list: 6" in source.left_out


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
            features(open_source(broken), network, workers=workers, batch_size=2)

    def test_skipping(self, broken: Path, network: FeatureNetwork, images: Tensor) -> None:
        made, loaded = features(open_source(broken), network, skip_bad=True, batch_size=3)
        kept = [0, 1, 3, 4, 6, 7]
        assert loaded.keys == [f"{i:03d}" for i in kept]
        assert set(loaded.bad) == {"002", "005"}
        assert torch.allclose(made, network(images[kept]), atol=1e-6)

    def test_nothing_left(self, folder: Path, network: FeatureNetwork) -> None:
        for path in folder.iterdir():
            path.write_text("x")
        with pytest.raises(ConfigError, match="none of the 8 images"):
            features(open_source(folder), network, skip_bad=True)

    def test_transparency_is_a_bad_image(self, folder: Path, network: FeatureNetwork) -> None:
        Image.new("RGBA", (64, 48), (1, 2, 3, 100)).save(folder / "003.png")
        with pytest.raises(ConfigError, match=r"1 of 8 .*003\.png has transparent pixels"):
            features(open_source(folder), network)

    def test_mixed_sizes_and_grey(self, folder: Path, network: FeatureNetwork, images: Tensor) -> None:
        save(images[1, :, :20, :30], folder / "001.png")
        Image.fromarray(images[2, 0].numpy()).save(folder / "002.png")
        made, _ = features(open_source(folder), network, batch_size=4)
        assert len(made) == 8
        assert torch.allclose(made[1], network(images[1:2, :, :20, :30])[0], atol=1e-6)
        grey = images[2:3, :1].expand(1, 3, -1, -1)
        assert torch.allclose(made[2], network(grey)[0], atol=1e-6)


class TestStatistics:
    def test_shards_make_the_whole(self, folder: Path, network: FeatureNetwork) -> None:
        source = open_source(folder)

        def moments(indices: range | None = None) -> Moments:
            kept = KeptMoments(Fid(network))
            for images in batches(source, Loaded(), batch_size=3, indices=indices):
                kept.add(Batch(images))
            return kept.kept

        whole = moments()
        parts = [moments(r) for r in (range(0, 3), range(3, 8), range(0))]
        merged = parts[0].merge(parts[1]).merge(parts[2])
        assert merged.n == whole.n == 8
        assert torch.allclose(merged.scatter, whole.scatter, rtol=1e-10, atol=1e-12)

    def test_a_failed_write_leaves_the_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "ref.npz"
        path.write_bytes(b"old")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.replace", full)
        with pytest.raises((OSError, HastenError), match="No space"):
            save_statistics(path, Statistics(Moments.of(torch.eye(3)), None))
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

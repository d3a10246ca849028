"""Which files are read as pictures, and what becomes of their pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hasten._errors import ConfigError
from hasten._pictures import describe_unread, list_folder, picture_suffixes, read_rgb, to_rgb


def pixels(height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels()).save(path, **options)
    return path


class TestListing:
    def test_links_are_followed_once_and_what_is_not_read_is_named(self, tmp_path: Path) -> None:
        real, links = tmp_path / "real", tmp_path / "links"
        save(real / "deep" / "0.png")
        links.mkdir()
        (links / "a").symlink_to(real)
        (links / "b").symlink_to(real)
        (links / "up").symlink_to(links)
        (real / "deep" / "round").symlink_to(links)
        (links / "one.png").symlink_to(real / "deep" / "0.png")
        (links / "gone.png").symlink_to(tmp_path / "nowhere.png")
        (links / "itself.png").symlink_to(links / "itself.png")
        for name in ("x.heic", "y.HEIC", "bare", "notes.txt", ".hidden.png"):
            (links / name).write_bytes(b"x")
        save(links / "__MACOSX" / "0.png")
        found = list_folder(links)
        assert found.pictures == ("a/deep/0.png", "one.png")
        assert found.companions == ("notes.txt",)
        assert found.unread["gone.png"] == found.unread["itself.png"] == "broken links"
        assert {name for name, why in found.unread.items() if "already" in why} == {"a/deep/round", "b", "up"}
        told = describe_unread(found.unread)
        assert "broken links: 2 (gone.png, itself.png)" in told
        assert ".heic files, an unsupported format: 2 (x.heic, y.HEIC)" in told
        assert "files without an ending: 1 (bare)" in told

    def test_a_real_folder_comes_before_a_link_to_it(self, tmp_path: Path) -> None:
        save(tmp_path / "run3" / "0.png")
        (tmp_path / "latest").symlink_to(tmp_path / "run3")
        assert list_folder(tmp_path).pictures == ("run3/0.png",)

    def test_folders_that_link_to_each_other_end(self, tmp_path: Path) -> None:
        folders = [tmp_path / f"f{i}" for i in range(12)]
        for folder in folders:
            save(folder / "0.png")
        for folder in folders:
            for other in folders:
                (folder / f"to-{other.name}").symlink_to(other)
        assert len(list_folder(tmp_path).pictures) == 12

    def test_every_still_format(self) -> None:
        wanted = {
            ".png",
            ".jpg",
            ".jfif",
            ".jpe",
            ".jp2",
            ".gif",
            ".bmp",
            ".tif",
            ".tga",
            ".ppm",
            ".pbm",
            ".pnm",
        }
        assert wanted <= picture_suffixes()
        # No decoder, no still, or another program's work.
        assert not {".h5", ".grib", ".mpg", ".pdf", ".eps", ".txt"} & picture_suffixes()

    @pytest.mark.parametrize(
        "name", ["a.gif", "a.jfif", "a.jp2", "a.tga", "a.pcx", "a.sgi", "a.dib", "a.ico"]
    )
    def test_they_are_read(self, tmp_path: Path, name: str) -> None:
        image = Image.new("RGB", (16, 16), (200, 30, 90))
        image.save(tmp_path / name, format={".jfif": "JPEG"}.get(Path(name).suffix))
        assert list_folder(tmp_path).pictures == (name,)
        read = np.asarray(read_rgb(tmp_path / name, name))
        assert np.abs(read.astype(int) - np.asarray(image)).max() <= 3


class TestPixels:
    @pytest.mark.parametrize("form", ["jpg", "png", "tif", "webp"])
    def test_exif_orientation_is_applied(self, tmp_path: Path, form: str) -> None:
        stored = np.zeros((16, 32, 3), dtype=np.uint8)
        stored[:, :16] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise for viewing
        lossless = {"lossless": True} if form == "webp" else {}
        Image.fromarray(stored).save(tmp_path / f"x.{form}", exif=exif, **lossless)
        upright = np.asarray(read_rgb(tmp_path / f"x.{form}", "x"))
        assert upright.shape == (32, 16, 3)
        assert upright[:15].min() > 240
        assert upright[17:].max() < 15

    def test_orientation_of_grey_and_16_bits(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 3
        grey = Image.fromarray(np.arange(6, dtype=np.uint16).reshape(1, 6) * 257)
        buffer = io.BytesIO()
        grey.save(buffer, "PNG", exif=exif)
        read = np.asarray(read_rgb(buffer, "x"))
        assert read[0, :, 0].tolist() == [5, 4, 3, 2, 1, 0]

    def test_damaged_exif_does_not_cost_the_picture(self, tmp_path: Path) -> None:
        Image.fromarray(pixels()).save(tmp_path / "x.png", exif=b"Exif\0\0no such thing")
        assert np.array_equal(read_rgb(tmp_path / "x.png", "x"), pixels())

    @pytest.mark.parametrize("form", ["png", "ppm", "tif"])
    def test_16_bits_are_read_alike_in_grey_and_in_colour(self, tmp_path: Path, form: str) -> None:
        values = np.random.default_rng(1).integers(0, 2**16, (5, 7), dtype=np.uint16)
        Image.fromarray(values).save(tmp_path / f"grey.{form}")
        grey = np.asarray(read_rgb(tmp_path / f"grey.{form}", "grey"))
        assert np.array_equal(grey[..., 0], grey[..., 2])
        colour = _colour_16(values, form)
        if colour is None:
            assert np.array_equal(grey[..., 0], values >> 8)
            return
        assert np.array_equal(np.asarray(read_rgb(io.BytesIO(colour), "colour")), grey)

    def test_other_depths_are_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.full((4, 4), 70_000, dtype=np.int32)).save(tmp_path / "x.tif")
        with pytest.raises(ConfigError, match=r"x has 32 bits per channel"):
            read_rgb(tmp_path / "x.tif", "x")

    def test_a_colour_key_is_transparency_too(self, tmp_path: Path) -> None:
        image = Image.fromarray(pixels())
        image.save(tmp_path / "x.png", transparency=tuple(map(int, pixels()[0, 0])))
        with pytest.raises(ConfigError, match="transparent pixels"):
            read_rgb(tmp_path / "x.png", "x")

    def test_animations_are_no_stills(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), (90 * i, 0, 0)) for i in range(3)]
        frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:], duration=9)
        with pytest.raises(ConfigError, match="x holds 3 frames"):
            read_rgb(tmp_path / "x.gif", "x")

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize(
        "form", ["PNG", "JPEG", "GIF", "TIFF", "JPEG2000", "TGA", "ICO", "PPM", "SGI", "WEBP"]
    )
    def test_damage_is_always_a_typed_error(self, form: str) -> None:
        buffer = io.BytesIO()
        Image.fromarray(pixels(32, 32)).save(buffer, form)
        whole, rng, told = buffer.getvalue(), np.random.default_rng(2), []
        for _ in range(20):
            broken = bytearray(whole[: int(rng.integers(1, len(whole)))])
            for at in rng.integers(0, len(broken), 5):
                broken[at] = int(rng.integers(0, 256))
            try:
                read_rgb(io.BytesIO(broken), "x.bin")
            except ConfigError as error:
                told.append(str(error))
        assert told
        assert all("x.bin" in text and "BytesIO" not in text for text in told)

    def test_rgb_is_passed_through(self) -> None:
        assert np.array_equal(to_rgb(Image.fromarray(pixels())), pixels())


def _colour_16(values: np.ndarray, form: str) -> bytes | None:
    """The same grey as a file with three 16-bit channels, which Pillow reads and does not write."""
    import struct
    import zlib

    rows = np.repeat(values[..., None], 3, axis=2).astype(">u2")
    height, width = values.shape
    if form == "ppm":
        return f"P6 {width} {height} 65535\n".encode() + rows.tobytes()
    if form != "png":
        return None

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines))
        + chunk(b"IEND", b"")
    )

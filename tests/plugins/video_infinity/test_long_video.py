"""From latents to files: pieces, segments, joins, and what is refused."""

from __future__ import annotations

import itertools
import json
import os
import sys
import threading
import time
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from clip_cases import build, call
from clip_launch import Ranks
from families import FAMILIES, baseline, seeded
from PIL import Image

import hasten
from hasten._adapters.decoders import FrameDecoder, TiledDecoder
from hasten._errors import ConfigError, HastenError
from hasten.pipelines.adapters import find
from hasten.pipelines.adapters.ltx import LTXDecoder
from hasten.plugins.video_infinity import video_file
from hasten.plugins.video_infinity.checkpoint import write_whole
from hasten.plugins.video_infinity.decode import as_pixels
from hasten.plugins.video_infinity.long_video import write_video
from hasten.plugins.video_infinity.video_file import (
    Encoding,
    PictureFolder,
    VideoFile,
    check_output,
    join_segments,
)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def ramp(first: int, count: int) -> torch.Tensor:
    """Grey frames whose level is five times their number."""
    levels = torch.arange(first, first + count, dtype=torch.uint8) * 5
    return levels[:, None, None, None].expand(-1, 32, 48, 3)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_segments_join_without_encoding_again(tmp_path: Path, suffix: str) -> None:
    parts = []
    for first, count in ((0, 20), (20, 7), (27, 13)):
        parts.append(tmp_path / f"{first}{suffix}")
        with VideoFile(parts[-1], Encoding(Fraction(24000, 1001))) as film:
            film.write(ramp(first, count))
    with pytest.raises(HastenError, match="they have 40 frames instead of 41"):
        join_segments(parts, tmp_path / f"all{suffix}", 41)
    assert not (tmp_path / f"all{suffix}").exists()
    join_segments(parts, tmp_path / f"all{suffix}", 40)
    whole = frames_of(tmp_path / f"all{suffix}")
    apart = np.concatenate([frames_of(part) for part in parts])
    assert np.array_equal(whole, apart)
    assert [round(float(frame.mean()) / 5) for frame in whole] == list(range(40))
    with av.open(str(tmp_path / f"all{suffix}")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(24000, 1001)
        times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert not list(tmp_path.glob("*.part*"))


def test_a_film_that_is_cut_short_plays_up_to_there(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "a.mp4", Encoding()) as film:
        film.write(ramp(0, 50))
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.6)])
    found: list[Any] = []
    with av.open(str(tmp_path / "cut.mp4")) as container, suppress(av.error.InvalidDataError):
        for frame in container.decode(video=0):
            found.append(frame)
    assert len(found) >= 16


def test_an_error_leaves_no_film(tmp_path: Path) -> None:
    def fail() -> None:
        with VideoFile(tmp_path / "a.mp4", Encoding()) as film:
            film.write(ramp(0, 3))
            raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        fail()
    assert not (tmp_path / "a.mp4").exists()
    with (
        pytest.raises(HastenError, match="cannot be written"),
        VideoFile(tmp_path / "no" / "b.mp4", Encoding()) as film,
    ):
        film.write(ramp(0, 3))
    with pytest.raises(HastenError, match="could not be joined"):
        join_segments([tmp_path / "missing.mp4"], tmp_path / "c.mp4", 3)


def test_outputs_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="codec 'libx265x' is unknown here; did you mean 'libx265'"):
        check_output(tmp_path / "a.mp4", "libx265x")
    with pytest.raises(ConfigError, match=r"codec 'aac' cannot write \.mp4 files here .* Try libx264"):
        check_output(tmp_path / "a.mp4", "aac")
    with pytest.raises(ConfigError, match=r"codec 'wmv2' cannot write \.mp4 files here"):
        check_output(tmp_path / "a.mp4", "wmv2")
    for suffix in (".mp4", ".mov", ".mkv"):
        check_output(tmp_path / f"a{suffix}", "libx264")
    with pytest.raises(ConfigError, match=r"ends in '\.gif'"):
        check_output(tmp_path / "a.gif", "libx264")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_output(tmp_path / "file" / "a.mp4", "libx264")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"needs PyAV: pip install 'hasten\[video\]'"):
        check_output(tmp_path / "a.mp4", "libx264")
    check_output(tmp_path / "pictures", "libx264")


def test_pictures(tmp_path: Path) -> None:
    folder = PictureFolder(tmp_path / "p", first=5)
    folder.write(ramp(10, 2))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["000005.png", "000006.png"]
    assert Image.open(tmp_path / "p" / "000006.png").getpixel((0, 0)) == (55, 55, 55)


def tiled_autoencoder(family: str) -> Any:
    """A small autoencoder that looks both ways in time, with random weights."""
    import diffusers

    torch.manual_seed(0)
    if family == "ltx":
        return diffusers.AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            patch_size=1,
            patch_size_t=1,
        ).eval()
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()


@pytest.mark.parametrize("framewise", [True, False])
@pytest.mark.parametrize("family", ["ltx", "hunyuan-video"])
@torch.no_grad()
def test_tiles_are_those_of_the_autoencoder(family: str, framewise: bool) -> None:
    import diffusers

    vae = tiled_autoencoder(family)
    vae.use_framewise_decoding = framewise
    pipe = SimpleNamespace(vae=vae, _denormalize_latents=diffusers.LTXPipeline._denormalize_latents)
    decoder = {"ltx": LTXDecoder, "hunyuan-video": TiledDecoder}[family]()
    latents = torch.randn(1, 4, 10, 2, 2, generator=torch.Generator().manual_seed(0))
    pieces = list(decoder.frames(pipe, latents))
    assert len(pieces) > 2 if framewise else len(pieces) == 1
    assert torch.equal(torch.cat(pieces, 2), vae.decode(decoder.scaled(pipe, latents)).sample)


@pytest.mark.parametrize("family", ["text-to-video", "animatediff", "wan", "cogvideox-sincos"])
def test_pieces_are_what_the_pipeline_decodes(family: str) -> None:
    pipe = FAMILIES[family]()
    decoder = find(pipe).capability(FrameDecoder)
    assert decoder is not None
    latents = baseline(pipe, family, **call(family, 5))
    expected = baseline(pipe, family, **call(family, 5, output_type="pt"))
    with torch.no_grad():
        pieces = list(decoder.frames(pipe, decoder.unpack(pipe, latents, (5, 8, 12))))
    assert len(pieces) > 1
    video = (torch.cat(pieces, 2).float() / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(video.transpose(1, 2), expected, atol=1e-5)
    with torch.no_grad():
        pixels = torch.cat(list(as_pixels(iter(pieces))))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, (video[0] * 255).round().permute(1, 2, 3, 0).to(torch.uint8))


def test_pixels_of_a_divided_run_are_those_of_the_pipeline() -> None:
    pipe = build("wan")
    arguments = call("wan", 5, output_type="pt")
    expected = baseline(pipe, "wan", **arguments)
    with hasten.accelerate(pipe, {"video_infinity": {"mode": "full", "clips": 2}}):
        assert torch.allclose(baseline(pipe, "wan", **arguments), expected, atol=1e-6)


class KeptVideo(VideoFile):
    """Also keeps the frames as they are given to the encoder."""

    def write(self, frames: torch.Tensor) -> None:
        kept = self.__dict__.setdefault("kept", [])
        kept.append(frames.numpy().copy())
        super().write(frames)

    def close(self) -> None:
        folder = self.path.parents[self.path.parent.suffix == ".parts"]
        np.save(folder / f"{self.path.parent.stem}.{self.path.stem}.npy", np.concatenate(self.kept))
        super().close()


def kept_frames(path: Path) -> np.ndarray:
    """What :class:`KeptVideo` kept of a video, of all of its segments."""
    parts = sorted(path.parent.glob(f"{path.name}.clip-*.npy")) or [
        path.parent / f"{path.parent.stem}.{path.stem}.npy"
    ]
    return np.concatenate([np.load(part) for part in parts])


def film(family: str, out: str, options: dict[str, Any]) -> None:
    """One rank of the test below; the second video of a process counts its frames anew."""
    from hasten.plugins.video_infinity import long_video as module

    told: list[str] = []
    first = {**seeded(family), **call(family, 4)}
    assert write_video(build(family), f"{out}.first.mkv", first, {**options, "clips": 2}).frames < 15
    given = {**seeded(family), **call(family, 7)}
    module.VideoFile = KeptVideo  # type: ignore[misc]  # in a process of its own
    video = write_video(build(family), out, given, options, tell=told.append)
    if video.rank == 0:
        assert f"{video.frames} frames written" in told
        Path(f"{out}.json").write_text(json.dumps([video.frames, video.world, sorted(video.traffic)]))


@pytest.mark.parametrize(("family", "count"), [("text-to-video", 7), ("wan", 25)])
def test_two_processes_write_one_file(family: str, count: int, tmp_path: Path) -> None:
    options = {"halo": 1, "global_frames": 2, "clips": 3, "timeout_s": 60.0}
    for world in (1, 2):
        ranks = Ranks(tmp_path, world, film, family, str(tmp_path / f"{world}.mp4"), options)
        try:
            assert ranks.wait() == [0] * world, ranks.output(0) + ranks.output(world - 1)
        finally:
            ranks.kill()
        frames, processes, _ = json.loads((tmp_path / f"{world}.mp4.json").read_text())
        assert (frames, processes) == (count, world)
    # Before the encoder: it makes 20 levels of one, so that rounding in the last bit would decide.
    one, two = kept_frames(tmp_path / "1.mp4"), kept_frames(tmp_path / "2.mp4")
    assert len(one) == count
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1
    for world in (1, 2):
        assert frames_of(tmp_path / f"{world}.mp4").shape == one.shape
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("changed", [0.0, 0.001])
def test_the_encoder_keeps_pictures_but_not_their_last_bit(tmp_path: Path, changed: float) -> None:
    noise = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 6, 6, generator=noise)
    smooth = torch.nn.functional.interpolate(coarse, size=(25, 64, 96), mode="trilinear")[0]
    first = smooth.permute(1, 2, 3, 0).mul(250).round().to(torch.uint8)
    second = first + (torch.rand(first.shape, generator=noise) < changed).to(torch.uint8)
    found = []
    for name, clip in (("a", first), ("b", second)):
        with VideoFile(tmp_path / f"{name}.mp4", Encoding()) as film:
            film.write(clip)
        found.append(frames_of(tmp_path / f"{name}.mp4").astype(int))
        assert np.abs(found[-1] - clip.numpy().astype(int)).mean() < 6
    difference = np.abs(found[0] - found[1])
    assert difference.mean() < 3
    assert (difference.max() > 2) == (changed > 0)


def test_a_full_disk_is_named_while_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.part.mp4").symlink_to("/dev/full")
    noise = torch.randint(
        256, (120, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )

    def encode() -> None:
        with VideoFile(tmp_path / "a.mp4", Encoding()) as film:
            film.write(noise)

    with pytest.raises(HastenError, match=r"a\.part\.mp4 cannot be written: .*No space left on device"):
        encode()
    assert not (tmp_path / "a.mp4").exists()


def test_an_encoder_that_fails_behind_a_full_queue_ends_the_film(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(video_file, "_WAITING", 2)
    went_on = threading.Event()

    def fail(self: VideoFile, av: Any) -> None:
        went_on.wait(20)
        raise OSError("no space")

    monkeypatch.setattr(VideoFile, "_encode_all", fail)
    film = VideoFile(tmp_path / "a.mp4", Encoding())
    film.write(ramp(0, 2))  # the queue is full
    threading.Timer(0.3, went_on.set).start()
    with pytest.raises(HastenError, match="no space"):
        film.close()


def test_pictures_of_a_longer_video_do_not_stay(tmp_path: Path) -> None:
    for frames in (8, 5):
        given = {**seeded("text-to-video"), **call("text-to-video", frames)}
        write_video(
            build("text-to-video"), tmp_path / "p", given, {"halo": 1, "global_frames": 2, "clips": 2}
        )
    assert sorted(file.name for file in (tmp_path / "p").iterdir()) == [f"{n:06d}.png" for n in range(5)]


def test_files_are_renamed_within_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename is whole or absent on one file system only, and temporary folders are often on another."""
    renames: list[tuple[Path, Path]] = []
    rename = os.replace

    def replace(source: Any, target: Any) -> None:
        renames.append((Path(source), Path(target)))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with VideoFile(tmp_path / "a.mp4", Encoding()) as film:
        film.write(ramp(0, 9))
    join_segments([tmp_path / "a.mp4"], tmp_path / "b.mp4", 9)
    PictureFolder(tmp_path / "p").write(ramp(0, 1))
    write_whole(tmp_path / "run" / "clip", b"content")
    assert [target.name for _, target in renames] == ["a.mp4", "b.mp4", "000000.png", "clip"]
    assert all(source.parent == target.parent for source, target in renames)


def test_first_frames_are_on_disk_before_the_last_clip_is_decoded(tmp_path: Path) -> None:
    """Clips are segments of their own where frames are independent, else pieces of one file."""
    seen: dict[str, int] = {}
    pipe = build("text-to-video")
    decode = pipe.vae.decode

    def look(*args: Any, **kwargs: Any) -> Any:
        parts = tmp_path / "a.mp4.parts"
        seen["frames"] = len(frames_of(parts / "clip-0000.mp4")) if (parts / "clip-0000.mp4").exists() else 0
        return decode(*args, **kwargs)

    pipe.vae.decode = look
    options = {"halo": 1, "global_frames": 2, "clips": 3}
    write_video(pipe, tmp_path / "a.mp4", {**seeded("text-to-video"), **call("text-to-video", 12)}, options)
    assert seen["frames"] == 4


def test_frames_in_order_reach_the_disk_while_others_are_decoded(tmp_path: Path) -> None:
    with VideoFile(tmp_path / "a.mp4", Encoding()) as film:
        for first in range(0, 160, 16):
            film.write(ramp(first % 32, 16))
        for _ in range(100):
            if film.partial.exists() and film.partial.stat().st_size > 2000:
                break
            time.sleep(0.1)
        cut = tmp_path / "cut.mp4"
        cut.write_bytes(film.partial.read_bytes())
    found: list[Any] = []
    with av.open(str(cut)) as container, suppress(av.error.InvalidDataError):
        found.extend(container.decode(video=0))
    assert found


def elsewhere(folder: str) -> None:
    """One rank of the test below: every rank has a disk of its own."""
    path = Path(folder) / f"disk-{os.environ['RANK']}" / "a.mp4"
    pipe = build("text-to-video")
    pipe.unet.register_forward_pre_hook(lambda *_: sys.exit(3))  # nothing is denoised in vain
    try:
        write_video(pipe, path, {**seeded("text-to-video"), **call("text-to-video", 6)}, SMALL)
    except ConfigError as error:
        sys.stdout.write(str(error))
        sys.exit(7)


SMALL = {"halo": 1, "global_frames": 2, "clips": 2, "timeout_s": 60.0}


def test_an_output_on_the_disk_of_another_machine_is_refused_on_all(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, 2, elsewhere, str(tmp_path))
    try:
        assert ranks.wait() == [7, 7], ranks.output(0) + ranks.output(1)
    finally:
        ranks.kill()
    for rank in range(2):
        assert "rank 1 does not see" in ranks.output(rank)
        assert "give an output path on a disk that all machines share" in ranks.output(rank)

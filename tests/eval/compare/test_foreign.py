"""``hasten eval`` on files of other tools: pairing by name, what is not read, foreign statistics, missing networks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from captioned import prompts_file, true_pictures
from PIL import Image
from typer.testing import Result

from hasten.pipelines import mini

Evaluate = Callable[..., Result]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's contrastive model as a CLIP folder that any metric takes: 96 features."""
    from hasten.eval.metrics.miniature import bundled

    folder = tmp_path_factory.mktemp("clip")
    for file in bundled("clip").iterdir():
        (folder / file.name).symlink_to(file)
    means = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(means))
    return folder


def plain(text: str) -> str:
    return " ".join(text.split())


class TestPairing:
    def scored(self, evaluate: Evaluate, *arguments: object) -> float:
        result = evaluate(*arguments, "-m", "mini_parser", "--json")
        assert result.exit_code == 0, result.output
        return float(json.loads(result.stdout)["metrics"]["mini_parser"]["value"])

    def renamed(self, tmp_path: Path, pattern: str) -> Path:
        folder = true_pictures(tmp_path / "pictures", 12)
        for i in range(12):
            (folder / f"{i:05d}.png").rename(folder / pattern.format(i))
        return folder

    def test_numbered_pictures_pair_in_natural_order(self, evaluate: Evaluate, tmp_path: Path) -> None:
        folder, prompts = self.renamed(tmp_path, "{}.png"), prompts_file(tmp_path / "p.txt", 12)
        assert self.scored(evaluate, "--generated", folder, "--prompts", prompts) == pytest.approx(1.0)
        other = self.scored(evaluate, "--generated", folder, "--prompts", prompts, "--order", "lexicographic")
        assert other < 0.7

    def test_ambiguous_names_need_a_word(self, evaluate: Evaluate, tmp_path: Path) -> None:
        folder, prompts = self.renamed(tmp_path, "img_{}.png"), prompts_file(tmp_path / "p.txt", 12)
        given = ("--generated", folder, "--prompts", prompts)
        refused = evaluate(*given, "-m", "mini_parser")
        assert refused.exit_code == 2
        assert "picture 3 is img_2.png in natural order and img_10.png in lexicographic order" in plain(
            refused.stderr
        )
        assert self.scored(evaluate, *given, "--order", "natural") == pytest.approx(1.0)
        texts = mini.prompts(12)
        named = {f"img_{i}.png": texts[i] for i in (5, 0, 11, 3, 2, 1, 4, 6, 7, 8, 9, 10)}
        (tmp_path / "map.json").write_text(json.dumps(named))
        by_name = ("--generated", folder, "--manifest", tmp_path / "map.json")
        assert self.scored(evaluate, *by_name) == pytest.approx(1.0)
        both = evaluate(*by_name, "--prompts", prompts, "-m", "mini_parser")
        assert both.exit_code == 2
        assert "use one of them" in both.stderr

    def test_a_generated_folder_brings_its_prompts(self, evaluate: Evaluate, tmp_path: Path) -> None:
        folder, texts = true_pictures(tmp_path / "pictures", 4), mini.prompts(4)
        lines = [json.dumps({"key": f"{i:05d}", "prompt": text}) for i, text in enumerate(texts)]
        (folder / "manifest.jsonl").write_text("\n".join(lines))
        assert self.scored(evaluate, "--generated", folder) == pytest.approx(1.0)
        (tmp_path / "p.txt").write_text("\n".join([*texts[:3], texts[0]]))
        result = evaluate("--generated", folder, "--prompts", tmp_path / "p.txt", "-m", "mini_parser")
        assert "1 of 4 prompts differ from the manifest" in plain(result.stdout)


class TestWhatIsNotRead:
    def test_it_is_named_in_the_output(self, evaluate: Evaluate, tmp_path: Path) -> None:
        real = true_pictures(tmp_path / "real", 4)
        links = tmp_path / "links"
        links.mkdir()
        (links / "class").symlink_to(real)
        (links / "gone.png").symlink_to(tmp_path / "nowhere")
        (links / "x.heic").write_bytes(b"x")
        arguments = ("--generated", links, "--baseline", links, "-m", "psnr")
        shown = evaluate(*arguments)
        assert "4 pictures" in shown.stdout
        assert ".heic files, an unsupported format: 1 (x.heic); broken links: 1 (gone.png)" in plain(
            shown.stdout
        )
        document = json.loads(evaluate(*arguments, "--json").stdout)
        assert document["unread"] == {
            str(links): {"gone.png": "broken links", "x.heic": ".heic files, an unsupported format"}
        }

    def test_a_folder_of_nothing_else_says_why(self, evaluate: Evaluate, tmp_path: Path) -> None:
        (tmp_path / "raw").mkdir()
        (tmp_path / "raw" / "0.heic").write_bytes(b"x")
        result = evaluate("--generated", tmp_path / "raw", "-m", "psnr")
        assert result.exit_code == 2
        assert "holds no images. Not read: .heic files" in plain(result.stderr)


class TestReferences:
    @pytest.fixture
    def fid(self, clip_folder: Path) -> tuple[str, ...]:
        return ("--json", *(f"--metric-option={m}.network={clip_folder}" for m in ("fid", "kid")))

    def test_skipping_concerns_the_reference_too(
        self, evaluate: Evaluate, tmp_path: Path, clip_folder: Path
    ) -> None:
        generated, real = true_pictures(tmp_path / "g", 5), true_pictures(tmp_path / "r", 6, seed=3)
        (real / "00003.png").write_bytes(b"")
        (real / "gone.png").symlink_to(tmp_path / "nowhere")
        arguments = ("--generated", generated, "--reference", real, "-m", "fid", "--json")
        arguments = (*arguments, "--metric-option", f"fid.network={clip_folder}")
        refused = evaluate(*arguments)
        assert refused.exit_code == 2
        assert "1 of 6 images" in refused.stderr
        assert "--skip-bad" in refused.stderr
        result = evaluate(*arguments, "--skip-bad", "--workers", 1, "--batch-size", 2)
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert list(document["bad"]) == [f"{real}: 00003"]
        assert document["unread"] == {str(real): {"gone.png": "broken links"}}
        (real / "00003.png").unlink()
        whole = json.loads(evaluate(*arguments).stdout)
        figures = [d["metrics"]["frechet_distance"]["value"] for d in (document, whole)]
        assert figures[0] == pytest.approx(figures[1], rel=1e-6)

    def test_reading_options_reach_the_reference(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from hasten.eval.metrics.miniature import Frechet
        from hasten.eval.pictures.loading import Reading
        from hasten.eval.scoring import reference

        seen: list[object] = []

        def watched(_sources: object, _loaded: object, reading: object, _indices: object) -> list[object]:
            seen.append(reading)
            return []

        monkeypatch.setattr(reference, "corresponding", watched)
        reading = Reading(batch_size=3, workers=2, skip_bad=True)
        real = reference.Reference(true_pictures(tmp_path / "r", 4), None, reading)
        reference.embed_references([Frechet()], real, (), 64)
        assert seen == [reading]

    def test_statistics_of_other_tools(self, evaluate: Evaluate, tmp_path: Path, clip_folder: Path) -> None:
        generated, real = true_pictures(tmp_path / "g", 5), true_pictures(tmp_path / "r", 6, seed=3)
        option = ("--metric-option", f"fid.network={clip_folder}")
        ours = tmp_path / "ours.npz"
        assert evaluate("stats", real, "--out", ours, *option).exit_code == 0
        with np.load(ours) as file:
            np.savez(tmp_path / "clean.npz", mu=file["mu"], sigma=file["sigma"])
        arguments = ("--generated", generated, "-m", "fid", "--json", *option)
        refused = evaluate(*arguments, "--reference", tmp_path / "clean.npz")
        assert refused.exit_code == 2
        assert "--reference-count" in refused.stderr
        foreign = evaluate(*arguments, "--reference", tmp_path / "clean.npz", "--reference-count", 6)
        assert foreign.exit_code == 0, foreign.output
        known = json.loads(evaluate(*arguments, "--reference", ours).stdout)
        document = json.loads(foreign.stdout)
        assert document["metrics"] == known["metrics"]
        assert "does not record what made its statistics" in document["warnings"][0]
        counted = evaluate(*arguments, "--reference", real, "--reference-count", 6)
        assert counted.exit_code == 2
        assert "pictures, which are counted" in plain(counted.stderr)
        np.savez(tmp_path / "wide.npz", mu=np.zeros(7), sigma=np.eye(7))
        wide = evaluate(*arguments, "--reference", tmp_path / "wide.npz", "--reference-count", 6)
        assert wide.exit_code == 2
        assert "statistics of 7 features" in plain(wide.stderr)

    def test_a_batch_gives_statistics_and_pictures(
        self, evaluate: Evaluate, tmp_path: Path, fid: tuple[str, ...]
    ) -> None:
        generated, real = true_pictures(tmp_path / "g", 5), true_pictures(tmp_path / "r", 6, seed=3)
        pictures = np.stack([np.asarray(Image.open(path)) for path in sorted(real.glob("*.png"))])
        np.savez(tmp_path / "adm.npz", arr_0=pictures, mu=np.zeros(96), sigma=np.eye(96))
        np.savez(tmp_path / "bare.npz", mu=np.zeros(96), sigma=np.eye(96))
        common = ("--generated", generated, *fid)
        batch = json.loads(evaluate(*common, "-m", "fid,kid", "--reference", tmp_path / "adm.npz").stdout)
        apart = json.loads(evaluate(*common, "-m", "fid,kid", "--reference", real).stdout)
        assert batch["metrics"]["kid"]["value"] == pytest.approx(apart["metrics"]["kid"]["value"], rel=1e-9)
        assert batch["metrics"]["frechet_distance"]["value"] != apart["metrics"]["frechet_distance"]["value"]
        assert "made from its 6 pictures" in " ".join(batch["warnings"])
        no_pictures = evaluate(
            *common, "-m", "kid,fid", "--reference", tmp_path / "bare.npz", "--reference-count", 6
        )
        assert no_pictures.exit_code == 2
        assert "kid needs the pictures of the reference" in plain(no_pictures.stderr)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "it is empty"),
            (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
            (None, "damaged"),
        ],
    )
    def test_damaged_files(
        self, evaluate: Evaluate, tmp_path: Path, content: bytes | None, reason: str
    ) -> None:
        path = tmp_path / "ref.npz"
        np.savez(path, mu=np.zeros(96), sigma=np.eye(96))
        path.write_bytes(path.read_bytes()[:300] if content is None else content)
        generated, prompts = true_pictures(tmp_path / "g", 3), prompts_file(tmp_path / "p.txt", 3)
        common = ("--generated", generated, "--prompts", prompts, "-m", "mini_frechet")
        result = evaluate(*common, "--reference", path)
        assert result.exit_code == 2
        assert reason in plain(result.stderr)


def test_all_missing_networks_are_told_at_once(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    base = true_pictures(tmp_path / "base", 3)
    result = evaluate("--generated", base, "-m", "clip,fid,lpips,blip2,clip_i,psnr")
    assert result.exit_code == 2
    options = ("clip_score.network=", "fid.weights=", "fid.network=", "lpips.weights=", "blip2_t.network=")
    for option in (*options, "clip_i.network="):
        assert option in result.stderr, option
    given = [f"--metric-option={name}.network={tmp_path / 'none'}" for name in ("clip_score", "cmmd")]
    result = evaluate("--generated", base, "-m", "clip,cmmd", *given)
    assert result.exit_code == 2
    assert "2 metrics can't be made" in result.stderr
    result = evaluate("--generated", base, "-m", "mini_parser,psnr")
    assert "mini_parser needs --prompts; psnr needs --baseline" in plain(result.stderr)

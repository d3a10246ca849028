"""Every loader against every damage: a CheckpointError that names the file, and the key where there is one."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from damage import HARMS, JSON, WHOLE, Tensors, alarm, leaves, replaced, spoil
from next_scale import SCHEDULE, VqReference, infinity_shapes, random_state, var_shapes
from safetensors import SafetensorError
from safetensors.torch import save_file

from hasten._errors import CheckpointError
from hasten._records import seal
from hasten._weights import save_sealed_tensors

SHARD = "model-00001-of-00002.safetensors"
FULL = "diffusion_pytorch_model.safetensors"


class Case:
    """A loader, and the files it reads."""

    json: tuple = ()
    tensors: ClassVar[dict] = {}
    within: tuple = ()
    optional: tuple = ()
    """Files that may be missing, and keys in them that may have any value."""
    free: tuple = ()
    places: int = 16
    """How many values of a JSON file are tried."""
    foreign: bool = False
    """Whether diffusers or transformers reads the JSON, which take some values as they come."""

    def make(self, folder):
        raise NotImplementedError

    def load(self, folder):
        raise NotImplementedError

    def seal(self, folder):
        """Bring digests up to date after a change inside a file."""

    @property
    def name(self):
        return type(self).__name__


class Var(Case):
    tensors: ClassVar[dict] = {
        "var.pth": ("head.bias", "blocks.0.attn.mat_qkv.weight", "class_emb.weight", "pos_1LC")
    }

    def make(self, folder):
        torch.save(random_state(var_shapes(layers=2, width=64)), folder / "var.pth")

    def load(self, folder):
        from hasten.pipelines.var.original import load_transformer

        load_transformer(folder / "var.pth", SCHEDULE)


class VarTokenizer(Case):
    tensors: ClassVar[dict] = {
        "vae.pth": ("quantize.embedding.weight", "decoder.conv_in.weight", "quant_conv.bias")
    }

    def make(self, folder):
        torch.save(VqReference().state_dict(), folder / "vae.pth")

    def load(self, folder):
        from hasten.pipelines.var.original import load_tokenizer

        load_tokenizer(folder / "vae.pth")


class Infinity(Case):
    tensors: ClassVar[dict] = {
        "gpt.pth": ("cfg_uncond", "head.weight", "block_chunks.0.module.0.sa.q_bias", "pos_start")
    }
    within = ("trainer", "gpt_fsdp")

    def make(self, folder):
        torch.save({"trainer": {"gpt_fsdp": random_state(infinity_shapes())}}, folder / "gpt.pth")

    def load(self, folder):
        from hasten.pipelines.infinity.original import load_transformer

        load_transformer(folder / "gpt.pth")


class InfinityShards(Case):
    places = 3
    json = ("model.safetensors.index.json",)
    tensors: ClassVar[dict] = {SHARD: ("cfg_uncond", "pos_start")}
    free = ("metadata",)

    def make(self, folder):
        state = random_state(infinity_shapes())
        first = {name: value for name, value in state.items() if not name.startswith("block_chunks")}
        second = {name: value for name, value in state.items() if name not in first}
        other = SHARD.replace("00001", "00002", 1)
        for name, part in ((SHARD, first), (other, second)):
            save_file(part, folder / name)
        table = dict.fromkeys(first, SHARD) | dict.fromkeys(second, other)
        (folder / self.json[0]).write_text(json.dumps({"metadata": {}, "weight_map": table}))

    def load(self, folder):
        from hasten.pipelines.infinity.original import load_transformer

        load_transformer(folder)


class InfinityTokenizer(Case):
    tensors: ClassVar[dict] = {"vae.pth": ("decoder.conv_in.weight", "encoder.conv_out.bias")}
    within = ("vae",)

    def make(self, folder):
        from hasten.pipelines.infinity.bsq_model import BSQAutoencoder

        torch.manual_seed(0)
        torch.save({"vae": BSQAutoencoder((32, 64), 1, 4).state_dict()}, folder / "vae.pth")

    def load(self, folder):
        from hasten.pipelines.infinity.original import load_tokenizer

        load_tokenizer(folder / "vae.pth")


class Pipeline(Case):
    """A saved next-scale pipeline, with the settings of a miniature."""

    optional = ("model_index.json",)  # then it is no pipeline at all, which hasten.load answers
    foreign = True
    places = 1
    json = ("hasten.json", "model_index.json", "transformer/config.json", "scheduler/scheduler_config.json")
    tensors: ClassVar[dict] = {
        f"transformer/{FULL}": ("head_norm.bias", "class_embed.weight"),
        f"vae/{FULL}": ("quant_conv.bias",),
    }
    free = ("call", "_diffusers_version")

    def make(self, folder):
        from hasten.pipelines.var.pipeline import VARPipeline
        from hasten.pipelines.var.scheduler import NextScaleScheduler
        from hasten.pipelines.var.transformer import NextScaleTransformer
        from hasten.pipelines.var.vq_model import MultiScaleVQModel

        transformer = NextScaleTransformer(1, 32, 2, 8, 32, SCHEDULE, 4, num_classes=3)
        vae = MultiScaleVQModel((16, 16), 1, 8, 32, norm_groups=8, attention=False)
        VARPipeline(transformer, vae, NextScaleScheduler()).save_pretrained(folder)
        settings = {"schema": 1, "product": "var", "call": {}, "absent": ["text_encoder", "tokenizer"]}
        (folder / "hasten.json").write_text(json.dumps(settings))

    def load(self, folder):
        from hasten.pipelines.mini._models import load_folder

        load_folder(folder)


class VideoCrafter(Case):
    foreign = True
    places = 1
    json = ("config.json",)
    tensors: ClassVar[dict] = {FULL: ("fps_embedding.linear_1.weight",)}
    optional = ("config.json",)

    def make(self, folder):
        from families import FAMILIES, _tiny

        from hasten.pipelines.videocrafter import VideoCrafterUNet

        config = {k: v for k, v in FAMILIES["text-to-video"]().unet.config.items() if not k.startswith("_")}
        _tiny(VideoCrafterUNet, **config).save_pretrained(folder)

    def load(self, folder):
        from hasten.pipelines.videocrafter import VideoCrafterUNet

        VideoCrafterUNet.from_pretrained(folder)


class Judge(Case):
    tensors: ClassVar[dict] = {"model.safetensors": None}

    def make(self, folder):
        from hasten.eval.metrics.miniature import bundled

        shutil.copytree(bundled("judge"), folder, dirs_exist_ok=True)

    def load(self, folder):
        from hasten.pipelines.mini.judge import load_judge

        load_judge(folder)


class Clip(Case):
    foreign = True
    places = 1
    json = ("config.json", "tokenizer.json")
    tensors: ClassVar[dict] = {"model.safetensors": None}
    free = ("*",)

    def make(self, folder):
        from hasten.eval.metrics.miniature import bundled

        shutil.copytree(bundled("clip"), folder, dirs_exist_ok=True)

    def load(self, folder):
        from hasten.eval.metrics.miniature import _load_clip

        _load_clip.__wrapped__(folder)


class Bundle(Case):
    places = 4
    json = ("aptp.json", "experts/0/plan.json")
    tensors: ClassVar[dict] = {"router.safetensors": ("prototypes", "temperature", "mean", "base.probe")}
    free = ("about", "base", "family")

    def make(self, folder):
        from hasten.plugins.aptp.plugin import BUNDLES

        shutil.copytree(BUNDLES / "t2i-unet", folder, dirs_exist_ok=True)

    def load(self, folder):
        from hasten.plugins.aptp.bundle import Bundle

        Bundle.load(folder)

    def seal(self, folder):
        from hasten.plugins.aptp.manifest import file_digest

        try:
            fields = json.loads((folder / "aptp.json").read_bytes())
        except (ValueError, RecursionError):
            return
        if isinstance(fields, dict) and isinstance(fields.get("files"), dict):
            fields["files"] |= {
                name: file_digest(folder / name) for name in fields["files"] if (folder / name).is_file()
            }
            (folder / "aptp.json").write_text(json.dumps(fields))


class Published(Case):
    """The router of the published experts."""

    json = ("hypernet/config.json", "quantizer/config.json")
    tensors: ClassVar[dict] = {
        f"hypernet/{FULL}": ("mh_fc.0.weight", "mh_fc.2.bias"),
        f"quantizer/{FULL}": ("embedding_gs",),
    }

    def make(self, folder):
        generator = torch.Generator().manual_seed(0)
        sizes = (4, 6, 2)
        heads = {f"mh_fc.{i}.weight": torch.randn(n, 8, generator=generator) for i, n in enumerate(sizes)}
        heads |= {f"mh_fc.{i}.bias": torch.zeros(n) for i, n in enumerate(sizes)}
        codes = {
            "embedding_gs": torch.rand(2, 12, generator=generator),
            "embedding.weight": torch.zeros(2, 12),
        }
        shape = {"width": [[4], [6]], "depth": [[1], [1]]}
        for name, tensors, fields in (
            ("hypernet", heads, {"structure": shape}),
            ("quantizer", codes, {"depth_order": [-1, 0]}),
        ):
            (folder / name).mkdir()
            save_file(tensors, folder / name / FULL)
            (folder / name / "config.json").write_text(json.dumps(fields))

    def load(self, folder):
        from hasten.plugins.aptp.importer import read_router

        groups = {"a": SimpleNamespace(units=4), "b": SimpleNamespace(units=6)}
        read_router(folder, SimpleNamespace(groups=groups))


class Calibration(Case):
    json = ("calibration.json",)
    free = ("model",)

    def make(self, folder):
        row, square = [0.1, 0.2, 0.3], [[1.0, 0.0], [0.5, 0.5]]
        fields = {"schema": 1, "model": "abc", "schedule": [[1, 1], [2, 2]], "samples": 1}
        fields |= {name: [row, row] for name in ("sigma", "ratio", "focus")} | {"mass": [[square] * 3] * 2}
        (folder / "calibration.json").write_text(json.dumps(fields))

    def load(self, folder):
        from hasten.plugins.hack.calibration import read_artefact

        read_artefact(folder / "calibration.json")


class Spectrum(Case):
    json = ("hasten.json",)

    def make(self, folder):
        (folder / "hasten.json").write_text('{"spectrum": {"A": 3.5, "beta": 1}}')

    def load(self, folder):
        from hasten.plugins.bottleneck.spectra import read_sidecar

        read_sidecar(folder / "hasten.json")


class Frames(Case):
    json = ("hasten.json",)
    optional = ("hasten.json",)

    def make(self, folder):
        (folder / "hasten.json").write_text('{"trained_frames": 9}')

    def load(self, folder):
        from hasten.plugins.video_infinity.config import VideoInfinityConfig
        from hasten.plugins.video_infinity.session import trained_frames

        mixing = SimpleNamespace(trained_frames=lambda pipe: None)
        trained_frames(VideoInfinityConfig(), mixing, SimpleNamespace(config={"_name_or_path": str(folder)}))


class Sealed(Case):
    """Files that hold their own checksum."""

    def seal(self, folder):
        for name in self.json:
            file = folder / name
            try:
                content = json.loads(file.read_bytes())
                content.pop("sha256", None)
                file.write_bytes(seal(content))
            except (ValueError, RecursionError, AttributeError, TypeError, OSError):
                continue  # damaged in another way
        for name in self.tensors:
            file = Tensors(folder / name)
            try:
                tensors = file.read()
                file.notes.pop("sha256", None)
                save_sealed_tensors(folder / name, tensors, file.notes)
            except (OSError, SafetensorError):
                continue


class Latency(Sealed):
    json = ("latency.json",)
    free = ("about",)

    def make(self, folder):
        rows = {"a": {"kept": [1, 4], "seconds": [0.1, 0.2]}}
        fields = {"about": {}, "rest": 0.5, "blocks": {"b": 0.1}, "groups": rows}
        (folder / "latency.json").write_bytes(seal(fields))

    def load(self, folder):
        from hasten.plugins.aptp.latency_table import LatencyTable

        structure = SimpleNamespace(groups={"a": SimpleNamespace(units=4)}, blocks={"b": None})
        LatencyTable.load(folder, structure)


class Search(Sealed):
    json = ("search.json",)
    free = ("about",)

    def make(self, folder):
        plan = {"kept": {"a": [0, 1]}, "dropped": ["b"]}
        (folder / "search.json").write_bytes(seal({"plans": [plan], "shares": [0.5], "about": {}}))

    def load(self, folder):
        from hasten.plugins.aptp.make.search import Searched

        Searched.load(folder)


class Tuning(Sealed):
    tensors: ClassVar[dict] = {"experts.safetensors": ("0.a.weight",)}

    def make(self, folder):
        from hasten.plugins.aptp.make.tune import Tuned

        Tuned("full", ({"a.weight": torch.ones(2)}, {"a.weight": torch.ones(2)}), {}).save(folder)

    def load(self, folder):
        from hasten.plugins.aptp.make.tune import Tuned

        Tuned.load(folder)


class Prepared(Sealed):
    json = ("data.json",)
    tensors: ClassVar[dict] = {"data.safetensors": ("latents", "embeddings", "condition.text", "empty.text")}

    def make(self, folder):
        tensors = {"latents": torch.ones(2, 4, 8, 8), "embeddings": torch.ones(2, 6)}
        tensors |= {"condition.text": torch.ones(2, 3, 6), "empty.text": torch.ones(1, 3, 6)}
        save_sealed_tensors(folder / "data.safetensors", tensors, {"made": "x"})
        (folder / "data.json").write_bytes(seal({"captions": ["a", "b"], "model": "m", "made": "x"}))

    def load(self, folder):
        from hasten.plugins.aptp.make.data import Prepared

        Prepared.load(folder)


CASES = {
    kind.__name__: kind for kind in (*Case.__subclasses__(), *Sealed.__subclasses__()) if kind is not Sealed
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Intact files of every case, made when first asked for."""
    made = {}

    def give(case):
        if case.name not in made:
            made[case.name] = tmp_path_factory.mktemp(case.name)
            case.make(made[case.name])
        return made[case.name]

    return give


SWEPT = [
    pytest.param(name, marks=pytest.mark.slow) if kind.foreign else name
    for name, kind in CASES.items()
    if kind.json
]
"""Cases for the sweep over values; where diffusers builds a model each time, it takes long."""


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]()


@pytest.fixture
def fresh(case, originals, tmp_path):
    """Gives an intact copy of the case's files as often as it is called."""

    def copy():
        shutil.rmtree(tmp_path / "files", ignore_errors=True)
        return shutil.copytree(originals(case), tmp_path / "files")

    return copy


def answer(case, folder):
    """What the loader says: the text of its CheckpointError, ``None`` if the files load."""
    with alarm(20):
        try:
            case.load(folder)
        except CheckpointError as error:
            return str(error)
    return None


def test_intact_files_load(case, fresh):
    case.load(fresh())


def test_a_damaged_file_is_named(case, fresh):
    for name in (*case.json, *case.tensors):
        for damage, do in (WHOLE | (JSON if name in case.json else {})).items():
            if damage == "missing" and name in case.optional:
                continue
            folder = fresh()
            do(folder / name)
            if damage in JSON:
                case.seal(folder)
            said = answer(case, folder)
            assert said, (name, damage)
            assert damage == "missing" or Path(name).name in said, (name, damage, said)


def test_a_damaged_tensor_is_named(case, fresh):
    for name, keys in case.tensors.items():
        for key in keys or sorted(Tensors(fresh() / name).read())[:2]:
            for harm in HARMS:
                if (harm, key) in ALLOWED.get(case.name, ()):
                    continue
                folder = fresh()
                spoil(Tensors(folder / name, case.within), harm, key)
                case.seal(folder)
                said = answer(case, folder)
                assert said, (name, key, harm)
                word = "missing" if harm == "missing" and "missing" in said else key.rpartition(".")[2]
                assert word in said, (name, key, harm, said)


@pytest.mark.parametrize("case", SWEPT, indirect=True)
def test_any_value_in_a_json_file_loads_or_is_named(case, fresh):
    """Nothing but CheckpointError comes out, whatever stands where; a text never passes for a number."""
    for name in case.json:
        content = json.loads((fresh() / name).read_text())
        places = [place for place in leaves(content) if not _free(case, place)]
        if len(places) > case.places:
            places = random.Random(0).sample(places, case.places)
        for place in places:
            value = content
            for key in place:
                value = value[key]
            for other in ("../x", True, None, [], -1, 10**400, {"a": 1}):
                folder = fresh()
                (folder / name).write_text(json.dumps(replaced(content, place, other)))
                case.seal(folder)
                said = answer(case, folder)
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if said is None and number and not case.foreign:
                    assert not isinstance(other, (str, bool)), (place, other)
                assert said is None or folder.name in said, (place, other, said)


def test_random_bytes_never_get_past_the_readers(case, fresh):
    numbers = random.Random(7)
    for name in (*case.json, *case.tensors):
        whole = (fresh() / name).read_bytes()
        for _ in range(6):
            data = bytearray(whole)
            for _ in range(numbers.choice((1, 4, 64))):
                data[numbers.randrange(min(len(data), 4096))] = numbers.randrange(256)
            folder = fresh()
            (folder / name).write_bytes(data)
            case.seal(folder)
            said = answer(case, folder)
            assert said is None or folder.name in said, (name, said)


def _free(case, place):
    return "*" in case.free or any(key in case.free for key in place)


ALLOWED = {
    # These say how large the model is.
    "Var": {("shape", "class_emb.weight")},
    "VarTokenizer": {("shape", "quantize.embedding.weight")},
    "Infinity": {("shape", "cfg_uncond"), ("shape", "head.weight")},
    "InfinityShards": {("shape", "cfg_uncond")},
    # Read without the model they belong to.
    "Bundle": {
        ("missing", "base.probe"),
        ("shape", "base.probe"),
        ("no dimensions", "mean"),
        ("shape", "mean"),
    },
    "Tuning": {(harm, "0.a.weight") for harm in ("missing", "extra", "shape", "no dimensions", "type")},
    "Published": {("shape", "embedding_gs"), ("extra", "embedding_gs"), ("missing", "mh_fc.2.bias")},
    # transformers knows more names than it uses.
    "Clip": {("extra", "logit_scale"), ("extra", "text_model.embeddings.position_embedding.weight")},
}

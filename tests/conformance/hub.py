"""Stands in for the model hub: tiny random text encoders, tokenizers and processors under any name."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import diffusers.pipelines
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

__all__ = ["offline"]

_WIDTH = 32
_WORDS = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<unk>"))} | {
    f"w{index}": index for index in range(4, 99)
}
_CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
_TOKENIZERS = (
    "AutoTokenizer",
    "AutoProcessor",
    "BertTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "Qwen2VLProcessor",
    "Qwen2_5_VLProcessor",
    "T5Tokenizer",
    "T5TokenizerFast",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
)
_MODELS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "BertModel",
    "Gemma2Model",
    "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "T5EncoderModel",
    "UMT5EncoderModel",
)


def _tokenizer(*_: Any, **__: Any) -> Any:
    """Words by white space; nearly all of them unknown."""
    words = Tokenizer(models.WordLevel(_WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
        chat_template=_CHAT,
    )


def _t5_config(*_: Any, **__: Any) -> Any:
    return transformers.T5Config(
        vocab_size=100, d_model=_WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4, decoder_start_token_id=0
    )


def _model(kind: Any) -> Callable[..., Any]:
    """``kind.from_pretrained``: the same class, tiny, with random weights."""

    def make(*_: Any, **__: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if "UMT5" in kind.__name__:
                return transformers.UMT5EncoderModel(
                    transformers.UMT5Config(**{**_t5_config().to_dict(), "model_type": "umt5"})
                ).eval()
            if "T5" in kind.__name__ or "Auto" in kind.__name__:
                return transformers.T5EncoderModel(_t5_config()).eval()
            text = {
                "vocab_size": 100,
                "hidden_size": _WIDTH,
                "intermediate_size": 37,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            }
            seen = {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
            if "ForConditionalGeneration" in kind.__name__:
                text["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 2]}
                return kind(kind.config_class(text_config=text, vision_config=seen)).eval()
            return kind(kind.config_class(**text)).eval()

    return make


def _absent_packages(stack: ExitStack) -> None:
    """Two optional packages of diffusers' pipelines, whose work does not matter here."""
    unchanged = SimpleNamespace(fix_text=lambda text: text)

    def resize(picture: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
        return torch.nn.functional.interpolate(picture, size, mode="nearest")

    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize, normalize=lambda picture, *_: picture),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    for found in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        if ".deprecated" in found.name or "onnx" in found.name or "flax" in found.name:
            continue
        try:
            module = importlib.import_module(found.name)
        except Exception:  # a package of its own is missing; no test will need it
            continue
        if not hasattr(module, "ftfy"):
            stack.enter_context(mock.patch.object(module, "ftfy", unchanged, create=True))
    for name in ("transformers.transformer_cosmos", "controlnets.controlnet_cosmos"):
        module = importlib.import_module(f"diffusers.models.{name}")
        if not hasattr(module, "transforms"):
            stack.enter_context(mock.patch.object(module, "transforms", transforms, create=True))


@contextmanager
def offline() -> Iterator[None]:
    """``from_pretrained`` of transformers' classes needs no network inside."""
    with ExitStack() as stack:
        for names, make in ((_TOKENIZERS, lambda _: _tokenizer), (_MODELS, _model)):
            for name in names:
                kind = getattr(transformers, name, None)
                if kind is not None:
                    stack.enter_context(mock.patch.object(kind, "from_pretrained", make(kind)))
        stack.enter_context(mock.patch.object(transformers.AutoConfig, "from_pretrained", _t5_config))
        _absent_packages(stack)
        yield

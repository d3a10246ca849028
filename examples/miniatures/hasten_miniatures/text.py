"""The word tokenizer of the miniatures: one token per word of the captions, in a stock transformers class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from hasten.pipelines.mini.scenes import BACKGROUNDS, COLOURS, COUNTS, PLACES, SHAPES, SIZES, ObjectGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["MAX_TOKENS", "build_tokenizer", "number_words", "tokenize", "vocabulary"]

MAX_TOKENS = 24
"""Length of the longest caption (20 tokens with start and end), and a margin."""
_PAD, _UNKNOWN, _START, _END = "<pad>", "<unk>", "<start>", "<end>"


def vocabulary() -> dict[str, int]:
    """Word -> id for the captions of the scenes data set."""
    plurals = [ObjectGroup(2, "small", "red", shape, "at the top").phrase().split()[3] for shape in SHAPES]
    phrases = [*COUNTS, *SIZES, *COLOURS, *SHAPES, *plurals, *PLACES, *BACKGROUNDS, "and on a background"]
    return number_words(phrases)


def number_words(phrases: Iterable[str]) -> dict[str, int]:
    """Word -> id for all words of some phrases. The end token has the largest id, as all CLIP pooling rules require."""
    words = sorted({word for phrase in phrases for word in re.findall(r"\w+", phrase)})
    return {word: number for number, word in enumerate([_PAD, _UNKNOWN, _START, *words, _END])}


def build_tokenizer(
    words: Mapping[str, int] | None = None, length: int = MAX_TOKENS
) -> PreTrainedTokenizerFast:
    """A tokenizer that splits at spaces and punctuation, ignores case, and adds start and end tokens.

    Args:
        words: word -> id, from :func:`number_words`; by default those of the scenes data set.
        length: largest number of tokens of a text.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = dict(vocabulary() if words is None else words)
    tokenizer = Tokenizer(WordLevel(words, unk_token=_UNKNOWN))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    ends = [(_START, words[_START]), (_END, words[_END])]
    tokenizer.post_processor = TemplateProcessing(single=f"{_START} $A {_END}", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        bos_token=_START,
        eos_token=_END,
    )


def tokenize(tokenizer: Any, captions: list[str]) -> Any:
    """``input_ids`` and ``attention_mask`` (B, L) of captions, padded to the length of the tokenizer."""
    length = tokenizer.model_max_length
    return tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")

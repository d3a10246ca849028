import pytest

from hasten.pipelines.mini.scenes import sample_scene
from hasten_miniatures.text import MAX_TOKENS, build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_caption_fits_and_every_word_is_known(tokenizer):
    for index in range(300):
        ids = tokenizer(sample_scene(1, index).caption()).input_ids
        assert len(ids) <= MAX_TOKENS
        assert tokenizer.unk_token_id not in ids


def test_unknown_words_become_one_unknown_token_each(tokenizer):
    words = vocabulary()
    ids = tokenizer("a red fox, please").input_ids
    expected = [words["<start>"], words["a"], words["red"], *[words["<unk>"]] * 3, words["<end>"]]
    assert ids == expected


def test_case_does_not_matter(tokenizer):
    assert tokenizer("A Red CIRCLE").input_ids == tokenizer("a red circle").input_ids


def test_the_end_token_has_the_largest_id(tokenizer):
    assert tokenizer.eos_token_id == len(vocabulary()) - 1


def test_the_empty_prompt_is_its_two_ends(tokenizer):
    out = tokenizer("", padding="max_length", max_length=MAX_TOKENS)
    assert out.input_ids[:2] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert set(out.input_ids[2:]) == {tokenizer.pad_token_id}


def test_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = sample_scene(1, 0).caption()
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.model_max_length == MAX_TOKENS

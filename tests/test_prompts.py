import warnings
from typing import Any

import pytest
import torch

from blip_diffusion.errors import InputError
from blip_diffusion.prompts import (
    category_words,
    insert_position,
    insert_positions,
    joined_categories,
    prompt_ids,
    subject_prompt,
    warn_of_dropped,
    warn_of_weighted_words,
    without_end,
)


@pytest.fixture(scope="module")
def clip(pipe: Any) -> Any:
    return pipe.tokenizer


@pytest.fixture(scope="module")
def bert(pipe: Any) -> Any:
    return pipe.qformer_tokenizer


def test_the_template() -> None:
    assert subject_prompt("on the beach", "dog") == "a dog on the beach"
    assert subject_prompt("  on the beach\n", " dog ") == "a dog on the beach"
    assert subject_prompt("", "dog") == "a dog"


@pytest.mark.parametrize(("strength", "repetitions", "times"), [(1.0, 3, 3), (0.5, 5, 2), (0.0, 20, 1), (1.0, 0, 1)])
def test_repetitions(strength: float, repetitions: int, times: int) -> None:
    """At least one repetition. (The published code gives an empty prompt for a strength of 0.)"""
    full = subject_prompt("on the beach", "dog", strength=strength, repetitions=repetitions)
    assert full == ", ".join(["a dog on the beach"] * times)


def test_only_the_end_of_shortened_captions_is_no_target() -> None:
    """In OPT the beginning has the id of the end (2)."""
    labels = torch.tensor([[2, 11, 13, 2, -100], [2, 11, 12, 13, 2], [2, 11, 2, -100, -100]])
    expected = torch.tensor([[2, 11, 13, -100, -100], [2, 11, 12, 13, 2], [2, 11, -100, -100, -100]])
    assert torch.equal(without_end(labels, [True, False, True]), expected)


def test_subject_tokens_follow_the_first_word(clip: Any) -> None:
    assert insert_position(clip) == 2
    sentence = subject_prompt("on grass", joined_categories(["dog", "cat", "owl"]))
    assert sentence == "a dog and a cat and a owl on grass"
    before = ["a", "a dog and a", "a dog and a cat and a"]
    ids = clip(sentence).input_ids
    for place, words in zip(insert_positions(clip, ["dog", "cat", "owl"]), before, strict=True):
        assert ids[:place] == clip(words).input_ids[:-1]
    before = prompt_ids(clip, ["a dog on the beach"], 16)[0, :2]
    assert clip.decode(before) == "<|startoftext|>a"


def test_prompt_ids_are_padded_and_truncated(clip: Any) -> None:
    short, long = prompt_ids(clip, ["a dog", "dog " * 40], 16)
    assert short.shape == long.shape == (16,)
    assert short[0] == long[0] == clip.bos_token_id
    assert short[-1] == long[-1] == clip.eos_token_id
    assert (short == clip.eos_token_id).sum() == 13 and (long == clip.eos_token_id).sum() == 1


def test_category_words_pad_to_the_longest(bert: Any) -> None:
    words = category_words(bert, ["dog", "dog dog dog"])
    assert words.input_ids.shape == words.attention_mask.shape == (2, 5)
    assert words.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert words.input_ids[0].tolist()[:3] == [bert.cls_token_id, bert.vocab["dog"], bert.sep_token_id]


@pytest.mark.parametrize("empty", ["", "   "])
def test_an_empty_category(bert: Any, empty: str) -> None:
    with pytest.raises(InputError, match="category is empty"):
        category_words(bert, ["dog", empty])


def test_dropped_words_are_quoted_once(clip: Any) -> None:
    sentence = "a dog on the beach at the forest"
    with pytest.warns(UserWarning) as caught:
        warn_of_dropped(clip, [sentence, sentence], 7)
    assert [str(warning.message) for warning in caught] == [
        "The prompt is too long for the text encoder; dropped from its end: 'at the forest'"
    ]


def test_short_prompts_give_no_warning(clip: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_dropped(clip, ["a dog on the beach"], 7)


def test_text_encoder_reads_the_remaining_words(clip: Any) -> None:
    kept = prompt_ids(clip, ["a dog on the beach at the forest"], 7)
    assert clip.decode(kept[0, 1:-1]).strip() == "a dog on the beach"


def test_vocabulary_of_another_model_is_refused(bert: Any) -> None:
    with pytest.raises(
        InputError, match=rf"vocabulary has 3 tokens, and its tokenizer {len(bert)}: .*qformer_tokenizer/"
    ):
        category_words(bert, ["dog"], vocabulary=3)


@pytest.mark.parametrize(
    ("prompt", "weighted"),
    [("on the (beach:1.5)", True), ("((beach)) at night", True), ("on the beach (sunny)", False), ("at 10:30", False)],
)
def test_prompt_weight_syntax_gives_a_warning(prompt: str, weighted: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_weighted_words([prompt, prompt])
    assert len(caught) == weighted

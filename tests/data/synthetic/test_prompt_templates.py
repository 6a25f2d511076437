"""Prompt sentences: closed vocabulary, length, and paraphrases."""

import random
from itertools import product

import pytest

from blip_diffusion.data.synthetic import backgrounds, prompt_templates
from blip_diffusion.data.synthetic.prompt_templates import PromptSpec


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (PromptSpec("on the beach"), "a teapot on the beach"),
        (
            PromptSpec("in a forest", size="small", position="top left"),
            "a teapot , small , at the top left , in a forest",
        ),
        (PromptSpec("on grass", count=2), "a teapot , two of them , on grass"),
        (PromptSpec("on grass", colour="red"), "a teapot in red , on grass"),
        (PromptSpec("on grass", accessory="hat"), "a teapot wearing a hat , on grass"),
        (PromptSpec("on the beach", style="pixel art"), "a teapot on the beach , as pixel art"),
        (PromptSpec(style="sketch"), "a teapot as a pencil sketch"),
    ],
)
def test_first_paraphrases(request_: PromptSpec, sentence: str) -> None:
    assert prompt_templates.caption("teapot", prompt_templates.prompt(request_)) == sentence


def every_request() -> list[PromptSpec]:
    single = [PromptSpec(accessory=key) for key in prompt_templates.ACCESSORIES]
    single += [PromptSpec(colour=key) for key in prompt_templates.PAINTS] + [
        PromptSpec(count=key) for key in prompt_templates.COUNTS
    ]
    single += [PromptSpec(style=key) for key in prompt_templates.STYLES]
    single += [
        PromptSpec(position=p, size=s)
        for p, s in product(["", *prompt_templates.POSITIONS], ["", *prompt_templates.SIZES])
    ]
    return [PromptSpec(**{**vars(request), "scene": scene}) for request in single for scene in backgrounds.phrases()]


def test_vocabulary_is_closed_and_lower_case() -> None:
    rng = random.Random(0)
    known = set(prompt_templates.vocabulary(backgrounds.phrases(), ["teapot"]))
    sampled = {word for request in every_request() for word in prompt_templates.prompt(request, rng).split()}
    assert sampled <= known
    assert all(word == word.lower() for word in known)


def test_sentences_contain_every_phrase_of_the_tables() -> None:
    page = " | ".join(prompt_templates.sentences(backgrounds.phrases(), ["teapot"]))
    tables = (
        prompt_templates.ACCESSORIES,
        prompt_templates.COUNTS,
        prompt_templates.SIZES,
        prompt_templates.POSITIONS,
        prompt_templates.STYLES,
    )
    for phrase in (phrase for table in tables for phrases in table.values() for phrase in phrases):
        assert phrase in page, phrase
    assert "a teapot |" in page


def test_prompts_fit_the_text_encoder() -> None:
    rng = random.Random(1)
    longest = max((prompt_templates.prompt(request, rng) for request in every_request()), key=lambda p: len(p.split()))
    assert len(longest.replace(",", "").split()) <= 16, longest


def test_all_paraphrases_are_sampled() -> None:
    rng = random.Random(2)
    sampled = {prompt_templates.prompt(PromptSpec("on grass", position="left"), rng) for _ in range(50)}
    assert sampled == {f"{words} , on grass" for words in prompt_templates.POSITIONS["left"]}

"""Visual questions with exact answers: they ask for the facts of held-out captions, one question per fact."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionFacts, CaptionParser, scene_words
from blip_diffusion.evaluation.blip2.captions import CONDITIONS, HeldOut, over_subjects
from blip_diffusion.evaluation.metrics.statistics import Estimate
from blip_diffusion.images import to_pil
from blip_diffusion.pipelines.captioner import Captioner

QUESTIONS = {
    "category": "What is in the image?",
    "scene": "What is behind the {category}?",
    "accessory": "What does the {category} have?",
    "colour": "What colour is the {category}?",
    "count": "How many {category} are there?",
    "size": "How big is the {category}?",
    "position": "Where is the {category}?",
    "style": "What kind of image is it?",
}
"""The question that asks for each field of `CaptionFacts`."""
NUMBERS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
ARTICLES = {"a", "an", "the"}


@dataclass(frozen=True)
class Question:
    """A question about an image."""

    image: int  # its row
    field: str  # of `CaptionFacts`
    text: str
    answer: str


def questions_of(facts: Sequence[CaptionFacts]) -> list[Question]:
    """Return a question for each fact of each image.

    Example:
        >>> questions_of([CaptionFacts("dog", count="2")])[1]
        Question(image=0, field='count', text='How many dog are there?', answer='2')
    """
    return [
        Question(image, field, QUESTIONS[field].format(category=one.category), answer)
        for image, one in enumerate(facts)
        for field, answer in asdict(one).items()
        if answer
    ]


def normalized_answer(answer: str) -> str:
    """Return an answer in lower case, without punctuation and articles, numbers as digits, as VQA compares them.

    Antol et al. 2015, section 3 ("processing of answers").
    """
    words = re.findall(r"[\w']+", answer.lower())
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ARTICLES)


def score_answers(
    captioner: Captioner, world: AssetLibrary, held: HeldOut, *, num_beams: int = 5
) -> dict[str, dict[str, Estimate]]:
    """Return the share of exactly right answers by field and condition, with 95 % bootstrap intervals over subjects.

    Args:
        captioner: The model that answers.
        world: The asset library, whose prompt templates the captions follow.
        held: Images and captions.
        num_beams: Width of the beam search.

    Returns:
        For each field of `CaptionFacts` that a caption mentions, the accuracy with the right image, with an image of
        another subject, and without an image.
    """
    parse = CaptionParser(scene_words(world))
    questions = questions_of([parse(caption) for caption in held.captions])
    images, texts, wrong = to_pil(held.pixels), [one.text for one in questions], held.mismatched
    answers_of = {
        "right image": captioner.answer([images[one.image] for one in questions], texts, num_beams),
        "wrong image": captioner.answer([images[wrong[one.image]] for one in questions], texts, num_beams),
        "no image": captioner.answer(None, texts, num_beams),
    }
    subjects = held.subjects[torch.tensor([one.image for one in questions])]
    return {
        field: {key: _accuracy(field, questions, answers_of[key], subjects) for key in CONDITIONS}
        for field in QUESTIONS
        if any(one.field == field for one in questions)
    }


def _accuracy(field: str, questions: Sequence[Question], answers: Sequence[str], subjects: torch.Tensor) -> Estimate:
    """Return the share of exactly right answers to the questions for a field."""
    correct = [
        float(normalized_answer(answer) == normalized_answer(one.answer)) if one.field == field else torch.nan
        for one, answer in zip(questions, answers, strict=True)
    ]
    return over_subjects(torch.tensor(correct), subjects)

from collections.abc import Sequence

import pytest

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.caption_parser import CaptionFacts, CaptionParser, scene_words
from blip_diffusion.evaluation.blip2.captions import held_out
from blip_diffusion.evaluation.blip2.questions import QUESTIONS, normalized_answer, questions_of, score_answers


def test_a_question_for_each_fact() -> None:
    facts = [CaptionFacts("dog", scene="beach"), CaptionFacts("red panda", count="2", position="left")]
    found = [(one.image, one.text, one.answer) for one in questions_of(facts)]
    assert found == [
        (0, "What is in the image?", "dog"),
        (0, "What is behind the dog?", "beach"),
        (1, "What is in the image?", "red panda"),
        (1, "How many red panda are there?", "2"),
        (1, "Where is the red panda?", "left"),
    ]
    assert set(QUESTIONS) == set(CaptionFacts.__dataclass_fields__)


@pytest.mark.parametrize(
    ("answer", "normalized"), [("Two.", "2"), ("a  dog", "dog"), ("The Top-Left", "top left"), ("", "")]
)
def test_normalized_answer(answer: str, normalized: str) -> None:
    assert normalized_answer(answer) == normalized


class Knowing:
    """Answers what the right image's caption says; without images, always the same."""

    def __init__(self, answers: Sequence[str]) -> None:
        self.answers = list(answers)

    def answer(self, images: Sequence[object] | None, texts: Sequence[str], num_beams: int) -> list[str]:
        return ["nothing"] * len(texts) if images is None else [f"The {answer}!" for answer in self.answers]


def test_scores(world: AssetLibrary) -> None:
    held = held_out(world, 8)
    parse = CaptionParser(scene_words(world))
    items = questions_of([parse(caption) for caption in held.captions])
    scores = score_answers(Knowing([one.answer for one in items]), world, held)  # type: ignore[arg-type]
    assert set(scores) == {one.field for one in items} and "category" in scores
    assert all(row["right image"].value == 1 and row["no image"].value == 0 for row in scores.values())

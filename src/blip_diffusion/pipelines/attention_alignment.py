"""Align the text positions of two prompts, for attention control (Hertz et al. 2023, "Prompt-to-Prompt").

Positions are those that the text encoder answers: subject tokens that are inserted count, and so does each piece of a
word. The published code counts neither, which gives every word the map of another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal

import torch

from blip_diffusion.errors import InputError
from blip_diffusion.modules.attention_control import AttentionAlignment
from blip_diffusion.pipelines.checks import number
from blip_diffusion.prompts import insert_position

SUBJECT = -1
"""Stands for a subject token among ids."""


@dataclass(frozen=True)
class AttentionControl:
    """What of the source's attention an edit takes over.

    Args:
        cross: Share of the steps, from the first, in which words that stay have the source's cross-attention maps.
        own: The same for self-attention, which holds layout and shape.
        shape: "free": the subject tokens and the new category have their own maps; "keep": the old category's, so that
            the new subject takes the old one's outline.
        weights: Factors of the maps of words of the prompt, by word (reweighting).

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> pipe.edit(photo, "cat", "dog", reference, prompt="on sofa", attention=AttentionControl(cross=0.4))
    """

    cross: float = 0.4
    own: float = 0.0
    shape: Literal["free", "keep"] = "free"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("attention.cross", self.cross, 0, 1)
        number("attention.own", self.own, 0, 1)
        if self.shape not in ("free", "keep"):
            raise InputError(f"attention.shape is {self.shape!r}: use free or keep.")
        for word, weight in self.weights.items():
            number(f"attention.weights[{word!r}]", weight, 0, 100)


@dataclass(frozen=True)
class Sentence:
    """A prompt, and how many subject tokens stand in it."""

    text: str
    subject_tokens: int = 0

    def positions(self, tokenizer: Any, length: int) -> list[int]:
        """Return the ids between [BOS] and [EOS], `SUBJECT` for each subject token, as far as they fit."""
        ids: list[int] = list(tokenizer(self.text, add_special_tokens=False, verbose=False).input_ids)
        before = insert_position(tokenizer) - 1
        return ([*ids[:before], *[SUBJECT] * self.subject_tokens, *ids[before:]])[: length - 2]


def align(
    tokenizer: Any, source: Sentence, target: Sentence, category: str, control: AttentionControl, length: int
) -> AttentionAlignment:
    """Align two prompts.

    Words that both have keep the source's maps; new words have their own. [EOS] and the padding after it are counted
    from [EOS] on. With `shape="keep"`, maps of replaced words are shared among those in their place, as P2P does.

    Args:
        tokenizer: Of the prompts.
        source: What describes the image.
        target: What to draw.
        category: The target's subject word, which has its own map unless the shape is kept.
        control: What is taken over.
        length: L, the text encoder's positions.

    Raises:
        InputError: If a weighted word is not in the target.
    """
    old, new = (one.positions(tokenizer, length) for one in (source, target))
    mapping, own = torch.zeros(length, length), torch.ones(length)

    def take(rows: Sequence[int], columns: Sequence[int]) -> None:
        for row in rows:
            mapping[row, list(columns)] = 1 / (len(columns) if len(columns) > len(rows) else len(rows))
        own[list(columns)] = 0

    take([0], [0])
    for kind, a, b, c, d in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if kind == "equal":
            for row, column in zip(range(a + 1, b + 1), range(c + 1, d + 1), strict=True):
                take([row], [column])
        elif kind == "replace" and control.shape == "keep":
            take(range(a + 1, b + 1), range(c + 1, d + 1))
    ends = zip(range(len(old) + 1, length), range(len(new) + 1, length), strict=False)
    for row, column in ends:
        take([row], [column])
    if control.shape == "free":
        own[_subject_columns(tokenizer, target, category)] = 1
    return AttentionAlignment(mapping, own, _factors(tokenizer, new, control.weights, length))


def _subject_columns(tokenizer: Any, target: Sentence, category: str) -> list[int]:
    """Return the positions of the subject tokens and the category after them."""
    first = insert_position(tokenizer)
    words = len(tokenizer(category, add_special_tokens=False).input_ids)
    return list(range(first, first + target.subject_tokens + words))


def _factors(tokenizer: Any, new: list[int], weights: Mapping[str, float], length: int) -> torch.Tensor:
    factor = torch.ones(length)
    for word, weight in weights.items():
        ids = list(tokenizer(word, add_special_tokens=False).input_ids)
        starts = [i for i in range(len(new) - len(ids) + 1) if ids and new[i : i + len(ids)] == ids]
        if not starts:
            raise InputError(f"The word {word!r} is not in the prompt: weigh words that are.")
        for start in starts:
            factor[start + 1 : start + 1 + len(ids)] = weight
    return factor

"""Align the text positions of two prompts, for attention control (Hertz et al. 2023, "Prompt-to-Prompt").

Positions are those of the text encoder's output: inserted subject tokens and all word pieces count. The published code
counts neither, which assigns each word the map of another one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Literal

import torch

from blip_diffusion.argument_checks import choice, number
from blip_diffusion.errors import InputError, quoted
from blip_diffusion.modules.attention_control import AttentionAlignment
from blip_diffusion.prompts import insert_position
from blip_diffusion.protocols import Tokenizer

SUBJECT = -1
"""Placeholder id of a subject token."""


@dataclass(frozen=True)
class AttentionControl:
    """The attention maps of the source that an edit keeps.

    Args:
        cross_attention: Share in [0, 1] of the steps, from the first, in which common words have the source's
            cross-attention maps.
        self_attention: The same for self-attention, which encodes layout and shape.
        shape: "free": subject tokens and the new category keep the target's maps; "keep": they have the old category's
            maps, so that the new subject takes the old outline.
        weights: Factors in [0, 100] of the maps of words of the prompt, by word (reweighting).

    Raises:
        InputError: If a number is out of range.

    Example:
        >>> pipe.edit(photo, "cat", "dog", reference, prompt="on sofa", attention=AttentionControl(0.4))
    """

    cross_attention: float = 0.4
    self_attention: float = 0.0
    shape: Literal["free", "keep"] = "free"
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number("attention.cross_attention", self.cross_attention, 0, 1)
        number("attention.self_attention", self.self_attention, 0, 1)
        choice("attention.shape", self.shape, ("free", "keep"))
        if not isinstance(self.weights, Mapping):
            raise InputError(f"attention.weights is {quoted(self.weights)}: use a dict from words to numbers.")
        for word, weight in self.weights.items():
            number(f"attention.weights[{word!r}]", weight, 0, 100)


@dataclass(frozen=True)
class Sentence:
    """A prompt and the number of subject tokens in it."""

    text: str
    subject_tokens: int = 0

    def positions(self, tokenizer: Tokenizer, length: int) -> list[int]:
        """Return the ids between [BOS] and [EOS], with `SUBJECT` for each subject token, cut to the text length."""
        ids: list[int] = list(tokenizer(self.text, add_special_tokens=False, verbose=False).input_ids)
        before = insert_position(tokenizer) - 1
        return ([*ids[:before], *[SUBJECT] * self.subject_tokens, *ids[before:]])[: length - 2]


def align(
    tokenizer: Tokenizer, source: Sentence, target: Sentence, category: str, control: AttentionControl, length: int
) -> AttentionAlignment:
    """Align two prompts.

    Words in both prompts have the source's maps, new words the target's. [EOS] and padding are aligned by the distance
    from [EOS]. With `shape="keep"`, maps of replaced words are distributed over the words that replace them, as in P2P.

    Args:
        tokenizer: The prompts' tokenizer.
        source: The description of the image.
        target: The prompt of the edit.
        category: The target's subject word, which keeps the target's map unless `shape="keep"`.
        control: The maps to keep.
        length: L, the number of text positions.

    Raises:
        InputError: If a weighted word is not in the target.
    """
    old, new = (sentence.positions(tokenizer, length) for sentence in (source, target))
    mapping, unmapped = torch.zeros(length, length), torch.ones(length)

    def map_positions(rows: Sequence[int], columns: Sequence[int]) -> None:
        for row in rows:
            mapping[row, list(columns)] = 1 / max(len(rows), len(columns))
        unmapped[list(columns)] = 0

    map_positions([0], [0])
    for kind, a, b, c, d in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if kind == "equal":
            for row, column in zip(range(a + 1, b + 1), range(c + 1, d + 1), strict=True):
                map_positions([row], [column])
        elif kind == "replace" and control.shape == "keep":
            map_positions(range(a + 1, b + 1), range(c + 1, d + 1))
    ends = zip(range(len(old) + 1, length), range(len(new) + 1, length), strict=False)
    for row, column in ends:
        map_positions([row], [column])
    if control.shape == "free":
        unmapped[_subject_columns(tokenizer, target, category)] = 1
    return AttentionAlignment(mapping, unmapped, _factors(tokenizer, new, control.weights, length))


def _subject_columns(tokenizer: Tokenizer, target: Sentence, category: str) -> list[int]:
    """Return the positions of the subject tokens and the category after them."""
    first = insert_position(tokenizer)
    words = len(tokenizer(category, add_special_tokens=False).input_ids)
    return list(range(first, first + target.subject_tokens + words))


def _factors(tokenizer: Tokenizer, new: list[int], weights: Mapping[str, float], length: int) -> torch.Tensor:
    factor = torch.ones(length)
    for word, weight in weights.items():
        ids = list(tokenizer(word, add_special_tokens=False).input_ids)
        starts = [i for i in range(len(new) - len(ids) + 1) if ids and new[i : i + len(ids)] == ids]
        if not starts:
            raise InputError(f"The word {word!r} is not in the prompt: use one of its words.")
        for start in starts:
            factor[start + 1 : start + 1 + len(ids)] = weight
    return factor

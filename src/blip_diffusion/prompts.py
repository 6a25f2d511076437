"""Words: how a prompt is built, where the subject tokens go in it, and how words become ids. One place for all of it.

[BOS] a <subject tokens> {target category} {prompt} [EOS]
[BOS] a <subject tokens> {category} and a <subject tokens> {category} {prompt} [EOS]
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.errors import InputError

BEFORE_SUBJECT = "a"
"""The words before the subject tokens: what the published weights were trained with."""
BETWEEN_SUBJECTS = f" and {BEFORE_SUBJECT} "
"""The words between two subjects."""

MAX_QUOTED = 400
"""Letters of a text that a message quotes."""


def subject_prompt(prompt: str, category: str, *, strength: float = 1.0, repetitions: int = 1) -> str:
    """Return the prompt, repeated `int(strength * repetitions)` times (at least once) to weigh more.

    Repeating is the published inference's way to strengthen the text; training never does it.
    """
    sentence = f"{BEFORE_SUBJECT} {category.strip()} {prompt.strip()}".strip()
    return ", ".join([sentence] * max(1, int(strength * repetitions)))


def joined_categories(categories: Sequence[str]) -> str:
    """Return the categories of several subjects as one, for `subject_prompt`: "dog and a cat"."""
    return BETWEEN_SUBJECTS.join(category.strip() for category in categories)


WEIGHTED_WORDS = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|\({2,}[^()]+\){2,}")
"""Weights of web UIs: (beach:1.5) and ((beach))."""


def warn_of_weighted_words(sentences: Sequence[str]) -> None:
    """Warn of weights on words, which are read as letters."""
    for sentence in dict.fromkeys(sentences):
        if found := WEIGHTED_WORDS.search(sentence):
            warnings.warn(
                f"Weights on words, as {found.group()[:60]!r}, are read as they are written: use prompt_reps to make "
                "the prompt weigh more, or prompt_embeds.",
                stacklevel=3,
            )


def insert_position(tokenizer: Any) -> int:
    """Before which token the subject stands: after [BOS] and the words of the template that precede it."""
    return insert_positions(tokenizer, [""])[0]


def insert_positions(tokenizer: Any, categories: Sequence[str]) -> list[int]:
    """Before which tokens of `subject_prompt(prompt, joined_categories(categories))` each subject stands."""
    starts = [joined_categories([*categories[:index], ""]) for index in range(len(categories))]
    before = [f"{BEFORE_SUBJECT} {start}".strip() for start in starts]
    return [1 + len(tokenizer(words, add_special_tokens=False).input_ids) for words in before]


@dataclass(frozen=True)
class Words:
    """Token ids (B, L), and 1 where they are words and 0 where padding."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "Words":
        """On another device."""
        return Words(self.input_ids.to(device), self.attention_mask.to(device))


def prompt_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """Prompts to ids (B, length), padded, cut after `length` tokens."""
    batch = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def category_words(
    tokenizer: Any, categories: Sequence[str], *, limit: int = 512, vocabulary: int | None = None
) -> Words:
    """Categories to the Q-Former's ids, padded to the longest.

    Raises `InputError` for an empty one, and where the tokenizer counts beyond `vocabulary`.
    """
    if any(not category.strip() for category in categories):
        raise InputError("The category is empty: say what the subject is, for example dog.")
    batch = tokenizer(list(categories), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    if vocabulary is not None and int(batch.input_ids.max()) >= vocabulary:
        raise InputError(
            f"The Q-Former knows {vocabulary} words, and its word list has {len(tokenizer)}: put the list that it was "
            "trained with into the model's folder qformer_tokenizer/, or name it as qformer_tokenizer."
        )
    return Words(batch.input_ids, batch.attention_mask)


def warn_of_dropped(tokenizer: Any, sentences: Sequence[str], length: int, what: str = "The prompt") -> None:
    """Warns of every sentence, said once, that `prompt_ids` must cut, and quotes what is lost."""
    room = length - 2  # [BOS] and [EOS]
    for sentence in dict.fromkeys(sentences):
        ids = tokenizer(sentence, add_special_tokens=False, verbose=False).input_ids
        if len(ids) > room:
            lost = tokenizer.decode(ids[room:]).strip()
            quoted = lost if len(lost) <= MAX_QUOTED else f"{lost[:MAX_QUOTED]} …"
            warnings.warn(f"{what} is too long for the text encoder; dropped from its end: {quoted!r}", stacklevel=3)

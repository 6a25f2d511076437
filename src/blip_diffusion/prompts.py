"""Prompts: their template, the position of the subject tokens, and tokenization.

[BOS] a <subject tokens> {target category} {prompt} [EOS]
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
"""The words before the subject tokens; the published weights were trained with them."""


MAX_QUOTED = 400
"""Most characters of a text that a message quotes."""


def subject_prompt(prompt: str, category: str, *, strength: float = 1.0, repetitions: int = 1) -> str:
    """Return the prompt, repeated `int(strength * repetitions)` times (at least once) to weigh more.

    Repeating is the published inference's way to strengthen the text; training never does it.
    """
    sentence = f"{BEFORE_SUBJECT} {category.strip()} {prompt.strip()}".strip()
    return ", ".join([sentence] * max(1, int(strength * repetitions)))


WEIGHTED_WORDS = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|\({2,}[^()]+\){2,}")
"""Weights of web UIs: (beach:1.5) and ((beach))."""


def warn_of_weighted_words(sentences: Sequence[str]) -> None:
    """Warn of weights on words, which are not supported and stay in the prompt as text."""
    for sentence in dict.fromkeys(sentences):
        if match := WEIGHTED_WORDS.search(sentence):
            warnings.warn(
                f"Weights on words, such as {match.group()[:60]!r}, have no effect and stay in the prompt as text: use "
                "prompt_reps to make the whole prompt weigh more, or prompt_embeds.",
                stacklevel=3,
            )


def insert_position(tokenizer: Any) -> int:
    """Return the index at which subject tokens are inserted: after [BOS] and `BEFORE_SUBJECT`."""
    return 1 + len(tokenizer(BEFORE_SUBJECT, add_special_tokens=False).input_ids)


@dataclass(frozen=True)
class Words:
    """Token ids (B, L), and a mask that is 1 for words and 0 for padding."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "Words":
        """Return a copy on a device."""
        return Words(self.input_ids.to(device), self.attention_mask.to(device))


def prompt_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> Tensor:
    """Tokenize prompts to ids (B, length), padded and truncated to `length` tokens."""
    batch = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    ids: Tensor = batch.input_ids
    return ids


def category_words(
    tokenizer: Any, categories: Sequence[str], *, limit: int = 512, vocabulary: int | None = None
) -> Words:
    """Tokenize categories for the Q-Former, padded to the longest.

    Raises:
        InputError: For an empty category, or a token id that is not below `vocabulary`.
    """
    if any(not category.strip() for category in categories):
        raise InputError("The category is empty: name the subject, for example dog.")
    batch = tokenizer(list(categories), padding=True, truncation=True, max_length=limit, return_tensors="pt")
    if vocabulary is not None and int(batch.input_ids.max()) >= vocabulary:
        raise InputError(
            f"The Q-Former's vocabulary has {vocabulary} tokens, and its tokenizer {len(tokenizer)}: put the tokenizer "
            "that it was trained with into the model's folder qformer_tokenizer/, or pass it as qformer_tokenizer."
        )
    return Words(batch.input_ids, batch.attention_mask)


def warn_of_dropped(tokenizer: Any, sentences: Sequence[str], length: int, what: str = "The prompt") -> None:
    """Warn once of each sentence that `prompt_ids` truncates, and quote the words that are dropped."""
    room = length - 2  # [BOS] and [EOS]
    for sentence in dict.fromkeys(sentences):
        ids = tokenizer(sentence, add_special_tokens=False, verbose=False).input_ids
        if len(ids) > room:
            dropped = tokenizer.decode(ids[room:]).strip()
            quoted = dropped if len(dropped) <= MAX_QUOTED else f"{dropped[:MAX_QUOTED]} …"
            warnings.warn(f"{what} is too long for the text encoder; dropped from its end: {quoted!r}", stacklevel=3)

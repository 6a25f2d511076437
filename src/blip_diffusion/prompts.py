"""Prompts: their template, the position of the subject tokens, and tokenization.

[BOS] a <subject tokens> {target category} {prompt} [EOS]
[BOS] a <subject tokens> {category} and a <subject tokens> {category} {prompt} [EOS]
"""

import itertools
import re
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.errors import InputError
from blip_diffusion.protocols import Tokenizer

BEFORE_SUBJECT = "a"
"""The words before the subject tokens; the published weights were trained with them."""
BETWEEN_SUBJECTS = f" and {BEFORE_SUBJECT} "
"""The words between two subjects."""

MAX_QUOTED = 400
"""Most characters of a text that a message quotes."""


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
    """Warn of weights on words, which stay in the prompt as text without `prompt_weighting`."""
    for sentence in dict.fromkeys(sentences):
        if match := WEIGHTED_WORDS.search(sentence):
            warnings.warn(
                f"Weights on words, such as {match.group()[:60]!r}, have no effect and stay in the prompt as text: use "
                "prompt_weighting, or prompt_reps to make the whole prompt weigh more.",
                stacklevel=3,
            )


def insert_position(tokenizer: Tokenizer) -> int:
    """Return the index at which subject tokens are inserted: after [BOS] and `BEFORE_SUBJECT`."""
    return insert_positions(tokenizer, [""])[0]


def insert_positions(tokenizer: Tokenizer, categories: Sequence[str]) -> list[int]:
    """Return the index of each subject's tokens in `subject_prompt(prompt, joined_categories(categories))`."""
    starts = [joined_categories([*categories[:index], ""]) for index in range(len(categories))]
    before = [f"{BEFORE_SUBJECT} {start}".strip() for start in starts]
    return [1 + len(tokenizer(words, add_special_tokens=False).input_ids) for words in before]


@dataclass(frozen=True)
class Words:
    """Token ids (B, L), and a mask that is 1 for tokens and 0 for padding."""

    input_ids: Tensor
    attention_mask: Tensor

    def to(self, device: torch.device) -> "Words":
        """Return a copy on a device."""
        return Words(self.input_ids.to(device), self.attention_mask.to(device))


def spelled_out(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[str]:
    """Return sentences with all tokens of learned words of several vectors: <rex> becomes <rex> <rex>_1.

    A sentence that has such tokens already stays.
    """
    known = tokenizer.get_added_vocab()
    several = {word for word in known if f"{word}_1" in known}
    if not several:
        return list(sentences)
    return [_spelled_out(tokenizer, text, several, known) for text in sentences]


def _spelled_out(tokenizer: Tokenizer, text: str, several: Set[str], known: Mapping[str, int]) -> str:
    if any(f"{word}_1" in text for word in several):
        return text
    for word in several & set(tokenizer.tokenize(text)):
        rest = itertools.takewhile(known.__contains__, (f"{word}_{number}" for number in itertools.count(1)))
        text = text.replace(word, " ".join([word, *rest]))
    return text


def prompt_ids(tokenizer: Tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """Tokenize prompts to ids (B, length), padded and truncated to `length` tokens."""
    batch = tokenizer(
        spelled_out(tokenizer, prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    ids: Tensor = batch.input_ids
    return ids


def category_words(
    tokenizer: Tokenizer, categories: Sequence[str], *, limit: int = 512, vocabulary: int | None = None
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


def warn_of_dropped(tokenizer: Tokenizer, sentences: Sequence[str], length: int, what: str = "The prompt") -> None:
    """Warn once of each sentence that `prompt_ids` truncates, and quote the words that are dropped."""
    room = length - 2  # [BOS] and [EOS]
    for sentence in dict.fromkeys(sentences):
        ids = tokenizer(sentence, add_special_tokens=False, verbose=False).input_ids
        if len(ids) > room:
            dropped = tokenizer.decode(ids[room:]).strip()
            quoted = dropped if len(dropped) <= MAX_QUOTED else f"{dropped[:MAX_QUOTED]} …"
            warnings.warn(f"{what} is too long for the text encoder; dropped from its end: {quoted!r}", stacklevel=3)


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the first token, the last token and padding of a language model."""

    bos: int | None
    eos: int
    pad: int

    @classmethod
    def of(cls, config: Any) -> "SpecialIds":
        """Return the ids in a configuration of transformers; without a padding id, the last token's is used."""
        eos = config.eos_token_id[0] if isinstance(config.eos_token_id, list | tuple) else config.eos_token_id
        pad = config.pad_token_id if config.pad_token_id is not None else eos
        return cls(getattr(config, "bos_token_id", None), eos, pad)  # T5 has no first token


def caption_words(
    tokenizer: Tokenizer, captions: Sequence[str], special: SpecialIds, *, limit: int, prompt: str = ""
) -> tuple[Words, Tensor]:
    """Tokenize captions for training a decoder-only model: `[BOS] {prompt} {caption} [EOS]`, padded on the right.

    Args:
        tokenizer: Of the language model.
        captions: B sentences.
        special: Ids of the special tokens.
        limit: Tokens of a row; longer ones are cut.
        prompt: Words before each caption.

    Returns:
        The words, and the labels (B, L): the words' ids, and -100 for padding and for a prompt with the `[BOS]` before
        it. Without a prompt `[BOS]` is a target, as in the published code: the last query predicts it.
    """
    begin = [] if special.bos is None else [special.bos]
    hidden = len(begin) + len(tokenizer(prompt, add_special_tokens=False).input_ids) if prompt else 0
    sentences = [f"{prompt} {caption}".strip() for caption in captions]
    rows = [tokenizer(sentence, add_special_tokens=False).input_ids for sentence in sentences]
    words = _padded([[*begin, *row, special.eos][:limit] for row in rows], special.pad)
    labels = words.input_ids.masked_fill(words.attention_mask == 0, -100)
    labels[:, :hidden] = -100
    return words, labels


def without_end(labels: Tensor, shortened: Sequence[bool]) -> Tensor:
    """Return labels (B, L) in which -100 replaces the last target of each caption that is shortened.

    A target for the end of "a dog", shortened from "a dog on the beach", would teach a model to stop there. Only the
    last target is replaced: the token of the end may be that of the beginning too, as in OPT. No flags: all are whole.
    """
    if not any(shortened):
        return labels
    last = (labels != -100) & ((labels != -100).flip(1).cumsum(1).flip(1) == 1)
    return labels.masked_fill(last & torch.tensor(shortened, device=labels.device)[:, None], -100)


def continuation_words(
    tokenizer: Tokenizer, texts: Sequence[str], special: SpecialIds, *, limit: int, encoder_decoder: bool = False
) -> Words:
    """Tokenize texts to continue: `[BOS] {text}`, padded on the left, or `{text} [EOS]` for an encoder.

    Raises `InputError` for a text of more than `limit` tokens, since a truncated prompt would change its meaning.
    """
    rows = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > limit:
            quoted = text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]} …"
            raise InputError(f"The text {quoted!r} has {len(row)} tokens: use at most {limit}.")
    if encoder_decoder:
        return _padded([[*row, special.eos] for row in rows], special.pad)
    begin = [] if special.bos is None else [special.bos]
    return _padded([[*begin, *row] for row in rows], special.pad, left=True)


def _padded(rows: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> Words:
    longest = max(len(row) for row in rows)
    fill = [[pad] * (longest - len(row)) for row in rows]
    ids = [[*space, *row] if left else [*row, *space] for row, space in zip(rows, fill, strict=True)]
    seen = [[0] * len(space) + [1] * len(row) if left else [1] * len(row) + [0] * len(space)
            for row, space in zip(rows, fill, strict=True)]  # fmt: skip
    return Words(torch.tensor(ids, dtype=torch.long), torch.tensor(seen, dtype=torch.long))

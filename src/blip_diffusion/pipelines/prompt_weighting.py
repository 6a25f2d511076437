"""Weights on words of a prompt, by the library compel (extra `weighting`): "(beach)1.5", "beach++" or "(beach:1.5)".

compel parses the prompt and weighs the text states of its words. Subject tokens stay where they are: compel gets one
negative token id for each of them, of weight 1, which `_Encoder` replaces before the text encoder runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from blip_diffusion.errors import InputError, reason
from blip_diffusion.optional_packages import require_package
from blip_diffusion.prompts import BEFORE_SUBJECT, MAX_QUOTED

MAX_DEPTH, MAX_GROUPS, MAX_WEIGHT = 3, 16, 10.0
"""Limits of a prompt: compel's parser takes twice as long for each further level of parentheses."""
SUBJECT = "\ue000"
"""A character of Unicode's private area, which stands for all subject tokens in the text that compel splits."""
WEB_UI = re.compile(r"\(([^():]+):\s*(\d*\.?\d+)\s*\)")


@dataclass(frozen=True)
class WeightedText:
    """A text in pieces, each with the weight of its words."""

    pieces: tuple[str, ...]
    weights: tuple[float, ...]

    @property
    def plain(self) -> str:
        """The text without the syntax of weights."""
        return " ".join(piece.strip() for piece in self.pieces if piece.strip())


def check_weighting(texts: Sequence[str]) -> None:
    """Raise `InputError` if compel is not installed, or a text has weights that can't be used."""
    require_package("compel", "weighting", "prompt_weighting")
    for text in dict.fromkeys(texts):
        _check_groups(text)
        parse_weights(text)


def _check_groups(text: str) -> None:
    depth = deepest = 0
    for sign in re.sub(r"\\.", "", text):
        depth = depth + 1 if sign == "(" else max(depth - 1, 0) if sign == ")" else depth
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH or text.count("(") > MAX_GROUPS:
        raise InputError(
            f"A prompt with weights has at most {MAX_GROUPS} parentheses, {MAX_DEPTH} within each other: use fewer, or "
            "write \\( for a parenthesis that is no weight."
        )


@lru_cache(maxsize=256)
def parse_weights(text: str) -> WeightedText:
    """Split a text where its weights change.

    Args:
        text: In compel's syntax, or in that of web UIs, "(beach:1.5)".

    Raises:
        InputError: For a weight out of range, and for compel's operators, such as `.blend()`.

    Example:
        >>> parse_weights("on the (beach)1.5").weights
        (1.0, 1.5)
    """
    from compel.prompt_parser import FlattenedPrompt, Fragment, PromptParser

    quoted = text.replace(SUBJECT, "")[:MAX_QUOTED]
    try:
        parsed = PromptParser().parse_conjunction(WEB_UI.sub(r"(\1)\2", text))
    except Exception as error:  # pyparsing and compel raise errors of many types
        raise InputError(f"The weights of {quoted!r} can't be read ({reason(error)}): check them.") from error
    prompts = parsed.prompts
    parts: list[Any] = (
        list(prompts[0].children) if len(prompts) == 1 and type(prompts[0]) is FlattenedPrompt else [None]
    )
    if parsed.lora_weights or not all(type(part) is Fragment for part in parts):
        raise InputError(f"{quoted!r} uses an operator of compel: only weights on words are supported.")
    weights = tuple(float(part.weight) for part in parts)
    if not all(isfinite(weight) and 0 <= weight <= MAX_WEIGHT for weight in weights):
        raise InputError(f"A weight of {quoted!r} is out of range: use numbers from 0 to {MAX_WEIGHT:g}.")
    return WeightedText(tuple(part.text for part in parts), weights)


def plain_text(text: str) -> str:
    """Return a text without its weights."""
    return parse_weights(text).plain


def weighted_states(
    text_encoder: Any,
    tokenizer: Any,
    text: str,
    subject: Tensor | None,
    *,
    length: int,
    device: torch.device,
) -> Tensor:
    """Encode a prompt whose words have weights.

    Weights above 1 move the states of words away from those of an empty prompt. For those below 1 the prompt without
    the words is mixed in, as compel does.

    Args:
        text_encoder: The `SubjectTextEncoder`.
        tokenizer: Its tokenizer.
        text: The full prompt; with a subject it begins with `BEFORE_SUBJECT`.
        subject: Subject tokens (Q, D), inserted after `BEFORE_SUBJECT`; `None`: words only.
        length: L, the text encoder's positions.
        device: Device to compute on.

    Returns:
        Text states (1, L, D).
    """
    from compel.embeddings_provider import EmbeddingsProvider

    if subject is not None:
        text = f"{BEFORE_SUBJECT} {SUBJECT} {text.removeprefix(BEFORE_SUBJECT).lstrip()}"
    parsed = parse_weights(text)
    provider = EmbeddingsProvider(
        _Tokenizer(tokenizer, 0 if subject is None else len(subject)),
        _Encoder(text_encoder, subject, device),
        truncate=True,
        model_max_length=length,
        device=device,
    )
    states: Tensor = provider.get_embeddings_for_weighted_prompt_fragments(
        [list(parsed.pieces)], [list(parsed.weights)], device=device
    )
    return states


class _Tokenizer:
    """A tokenizer that maps `SUBJECT` to the ids -1 to -Q of the subject tokens."""

    def __init__(self, tokenizer: Any, count: int) -> None:
        self._tokenizer = tokenizer
        self._ids = [-1 - index for index in range(count)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        """Return the ids of each text without [BOS] and [EOS]."""
        return {"input_ids": [self._encode(text) for text in texts]}

    def _encode(self, text: str) -> list[int]:
        words, subject, rest = text.partition(SUBJECT)
        ids = self._words(words) + self._ids * bool(subject) + self._words(rest)
        return ids or [self._tokenizer.bos_token_id]  # which compel removes; it can't remove it from nothing

    def _words(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


class _Encoder:
    """A text encoder as compel calls it: ids (1, L), negative ones for subject tokens, and a mask of words to hide."""

    def __init__(self, text_encoder: Any, subject: Tensor | None, device: torch.device) -> None:
        self._text_encoder, self._subject, self.device = text_encoder, subject, device
        self.dtype = text_encoder.dtype

    def __call__(self, ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> SimpleNamespace:
        """Return an object with `last_hidden_state` (1, L, D)."""
        words, hidden = ids[ids >= 0][None], attention_mask
        if hidden is not None and bool(hidden.all()):
            hidden = None  # the same computation as without weights
        if words.shape == ids.shape:
            output: SimpleNamespace = self._text_encoder(words, attention_mask=hidden)
            return output
        assert self._subject is not None
        at = int((ids[0] < 0).nonzero()[0])
        states = self._text_encoder(words, self._subject[None], at, attention_mask=hidden)
        return SimpleNamespace(last_hidden_state=states)

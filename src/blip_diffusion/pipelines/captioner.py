"""Captions of images, and answers to questions about them: BLIP-2's queries continued by a language model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images as pixels_of
from blip_diffusion.blip2 import Blip2
from blip_diffusion.checkpoint.blip2 import load_blip2
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast, common_length
from blip_diffusion.pipelines.checks import texts, whole_number
from blip_diffusion.prompts import continuation_words

BATCH = 16
QUESTION = "Question: {} Short answer:"
"""How the published zero-shot evaluation asks."""
T5_POSITIONS = 512
"""Tokens that an encoder without a limit of its own was trained on."""


class Captioner:
    """Write captions of images and answer questions about them (Li, Li, Savarese & Hoi 2023, section 3.2).

    Args:
        model: A model with a language model.

    Raises:
        CheckpointError: If it has none.

    Example:
        >>> captioner = Captioner.from_pretrained("Salesforce/blip2-opt-2.7b")
        >>> captioner(Image.open("dog.jpg"))
        ['a dog on the beach']
    """

    def __init__(self, model: Blip2) -> None:
        self.model = model
        self.language = model.speaker

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        base: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "Captioner":
        """Load a captioner.

        Args:
            name_or_path: A folder of the objective `language`, a folder or hub id of transformers'
                `Blip2ForConditionalGeneration`, or a `.pth` of LAVIS.
            base: For LAVIS' file: a model of the same shapes, which has the frozen parts.
            torch_dtype: Precision of the weights; by default float32.
            **hub: Arguments of `snapshot_download`.

        Returns:
            The captioner, on the CPU.

        Raises:
            CheckpointError: If the model cannot be loaded or has no language model.

        Example:
            >>> captioner = Captioner.from_pretrained("runs/mini/language/export")
        """
        return cls(load_blip2(name_or_path, base=base, dtype=torch_dtype, **hub))

    def to(self, device: torch.device | str) -> "Captioner":
        """Move the model to a device."""
        self.model.to(device)
        return self

    def __call__(
        self,
        images: OneOrMany[Image.Image],
        prompt: OneOrMany[str] = "",
        num_beams: int = 5,
        max_new_tokens: int = 30,
    ) -> list[str]:
        """Write a caption of each image by beam search.

        Args:
            images: One image or B, of any size and mode.
            prompt: Words that the captions begin with and that are left out of them, such as "a photo of"; one for all
                images, or B.
            num_beams: Sentences that are kept while searching, from 1.
            max_new_tokens: Most tokens of a caption, from 1.

        Returns:
            B captions.

        Raises:
            InputError: For an image that can't be used, a prompt that is too long, or numbers out of range.

        Example:
            >>> captioner([photo, other], prompt="a photo of", num_beams=3)
        """
        return self._write(images, prompt, num_beams, max_new_tokens, length_penalty=1.0)

    def answer(
        self,
        images: OneOrMany[Image.Image],
        questions: OneOrMany[str],
        num_beams: int = 5,
        max_new_tokens: int = 10,
    ) -> list[str]:
        """Answer a question about each image in a few words, as the published zero-shot evaluation asks.

        Args:
            images: One image for all questions, or B.
            questions: One question for all images, or B; written in lower case and without punctuation.
            num_beams: Answers that are kept while searching, from 1.
            max_new_tokens: Most tokens of an answer, from 1.

        Returns:
            B answers.

        Raises:
            InputError: For an image that can't be used, or a question that is empty or too long.

        Example:
            >>> captioner.answer(photo, "How many dogs are there?")
            ['two']
        """
        plain = [_plain(question) for question in texts("questions", questions)]
        if not all(plain):
            raise InputError("A question is empty: ask something, for example how many dogs are there.")
        prompts = [QUESTION.format(f"{question}?") for question in plain]
        penalty = -1.0 if self.language.is_encoder_decoder else 0.0  # both prefer short answers
        return self._write(images, prompts, num_beams, max_new_tokens, length_penalty=penalty)

    def _write(
        self,
        images: OneOrMany[Image.Image],
        prompt: OneOrMany[str],
        num_beams: int,
        max_new_tokens: int,
        *,
        length_penalty: float,
    ) -> list[str]:
        num_beams = whole_number("num_beams", num_beams, 1, 64)
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1, 1000)
        squares, prompts = square_images(self.model, as_list(images)), texts("prompt", prompt)
        size = common_length({"images": len(squares), "prompts": len(prompts)})
        squares, prompts = broadcast(squares, size), broadcast(prompts, size)
        special = self.model.special
        words = continuation_words(
            self.model.tokenizer,
            prompts,
            special,
            limit=self._room(max_new_tokens),
            encoder_decoder=self.language.is_encoder_decoder,
        ).to(self.model.device)
        options = {
            "num_beams": num_beams,
            "max_new_tokens": max_new_tokens,
            "length_penalty": length_penalty,
            "do_sample": False,
            "eos_token_id": special.eos,
            "pad_token_id": special.pad,
        }
        written: list[str] = []
        for first in range(0, len(squares), BATCH):
            rows = slice(first, first + BATCH)
            queries = self._queries(squares[rows])
            ids = self.language.generate(queries, words.input_ids[rows], words.attention_mask[rows], **options)
            written += self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in written]

    @torch.no_grad()
    def _queries(self, squares: Sequence[Image.Image]) -> Tensor:
        pixels = pixels_of.to_tensor(squares).to(self.model.device)
        return self.model.queries(self.model.features(pixels))

    def _room(self, max_new_tokens: int) -> int:
        """Tokens that a prompt may have beside the queries and what is written."""
        positions = int(getattr(self.language.language_model.config, "max_position_embeddings", T5_POSITIONS))
        queries = self.model.qformer.config.queries
        taken = queries + 1 + (0 if self.language.is_encoder_decoder else max_new_tokens)
        if taken >= positions:
            raise InputError(
                f"max_new_tokens is {max_new_tokens}, and this language model has {positions} positions, {queries} of "
                f"them for the image: use at most {positions - queries - 2}."
            )
        return positions - taken


def square_images(model: Blip2, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images as the model's image encoder sees them, upright and square. Raises `InputError` for no images."""
    if not images:
        raise InputError("There are no images: give at least one.")
    for number, image in enumerate(images, start=1):
        if not isinstance(image, Image.Image):
            raise InputError(f"Image {number} is a {type(image).__name__}: open it with PIL first.")
        pixels_of.check_size(image, f"Image {number}")
    size, mode = model.reference.size, model.reference.resize_mode
    return [pixels_of.fit_square(pixels_of.as_rgb(image), size, mode) for image in images]


def _plain(question: str) -> str:
    return re.sub(r"[^\w\s']", "", question.lower()).strip()

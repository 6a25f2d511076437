"""Captions of images, and answers to questions about them: BLIP-2's queries continued by a language model."""

import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.blip2_pipeline import Blip2Pipeline
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast, common_length
from blip_diffusion.pipelines.checks import texts, whole_number
from blip_diffusion.prompts import continuation_words

BATCH = 16
QUESTION = "Question: {} Short answer:"
"""How the published zero-shot evaluation asks."""
T5_POSITIONS = 512
"""Tokens that an encoder without a limit of its own was trained on."""


class Captioner(Blip2Pipeline):
    """Write captions of images and answer questions about them (Li, Li, Savarese & Hoi 2023, section 3.2).

    `from_pretrained` loads a folder of the objective `language`, transformers' `Blip2ForConditionalGeneration`, or a
    `.pth` of LAVIS' stage 2.

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
        super().__init__(model)
        self.language = model.speaker

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
        squares, prompts = self._squares(as_list(images)), texts("prompt", prompt)
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
        return self.model.queries(self._features(squares))

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


def _plain(question: str) -> str:
    return re.sub(r"[^\w\s']", "", question.lower()).strip()

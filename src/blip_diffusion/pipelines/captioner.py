"""Captions of images, and answers to questions about them: BLIP-2 with a language model."""

import re
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion.argument_checks import texts, whole_number
from blip_diffusion.blip2 import Blip2
from blip_diffusion.errors import InputError
from blip_diffusion.pipelines.blip2_pipeline import Blip2Pipeline
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, broadcast, common_length
from blip_diffusion.prompts import continuation_words

BATCH = 16
QUESTION = "Question: {} Short answer:"
"""The prompt of the published zero-shot evaluation (Li et al. 2023, section 4.1)."""
T5_POSITIONS = 512
"""Input length of encoders whose configuration has no limit: T5 was trained on 512 tokens."""


class Captioner(Blip2Pipeline):
    """Write captions of images and answer questions about them (Li, Li, Savarese & Hoi 2023, section 3.2).

    `from_pretrained` loads a folder of the objective `language`, transformers' `Blip2ForConditionalGeneration`, or a
    `.pth` of LAVIS' stage 2.

    Args:
        model: A model with a language model.

    Raises:
        CheckpointError: If the model has no language model.

    Example:
        >>> captioner = Captioner.from_pretrained("Salesforce/blip2-opt-2.7b")
        >>> captioner(Image.open("dog.jpg"))
        ['a dog on the beach']
    """

    def __init__(self, model: Blip2) -> None:
        super().__init__(model)
        self.language = model.language_prefix

    def __call__(
        self,
        images: OneOrMany[Image.Image] | None,
        prompt: OneOrMany[str] = "",
        num_beams: int = 5,
        max_new_tokens: int = 30,
    ) -> list[str]:
        """Write a caption of each image by beam search.

        Args:
            images: One image or B, of any size and mode; `None`: the language model continues the prompt alone.
            prompt: Beginning of the captions, which is not returned, such as "a photo of"; one for all images, or B.
            num_beams: Width of the beam search, at least 1.
            max_new_tokens: Largest number of tokens of a caption, at least 1.

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
        images: OneOrMany[Image.Image] | None,
        questions: OneOrMany[str],
        num_beams: int = 5,
        max_new_tokens: int = 10,
    ) -> list[str]:
        """Answer a question about each image in a few words, with the prompt of the published zero-shot evaluation.

        Args:
            images: One image for all questions, or B; `None`: the language model answers alone.
            questions: One question for all images, or B; they are lower-cased, and punctuation is removed.
            num_beams: Width of the beam search, at least 1.
            max_new_tokens: Largest number of tokens of an answer, at least 1.

        Returns:
            B answers.

        Raises:
            InputError: For an image that can't be used, or a question that is empty or too long.

        Example:
            >>> captioner.answer(photo, "How many dogs are there?")
            ['two']
        """
        normalized = [_normalized(question) for question in texts("questions", questions)]
        if not all(normalized):
            raise InputError("A question is empty: write one, for example how many dogs are there.")
        prompts = [QUESTION.format(f"{question}?") for question in normalized]
        penalty = -1.0 if self.language.is_encoder_decoder else 0.0  # both prefer short answers
        return self._write(images, prompts, num_beams, max_new_tokens, length_penalty=penalty)

    def _write(
        self,
        images: OneOrMany[Image.Image] | None,
        prompt: OneOrMany[str],
        num_beams: int,
        max_new_tokens: int,
        *,
        length_penalty: float,
    ) -> list[str]:
        num_beams = whole_number("num_beams", num_beams, 1, 64)
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 1, 1000)
        prompts = texts("prompt", prompt)
        squares = None if images is None else self._squares(as_list(images))
        if squares is not None:
            size = common_length({"images": len(squares), "prompts": len(prompts)})
            squares, prompts = broadcast(squares, size), broadcast(prompts, size)
        special = self.model.special
        tokens = continuation_words(
            self.model.tokenizer,
            prompts,
            special,
            limit=self._max_prompt_tokens(max_new_tokens),
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
        captions: list[str] = []
        for first in range(0, len(prompts), BATCH):
            rows = slice(first, first + BATCH)
            queries = None if squares is None else self._queries(squares[rows])
            ids = self.language.generate(queries, tokens.input_ids[rows], tokens.attention_mask[rows], **options)
            captions += self.model.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in captions]

    @torch.no_grad()
    def _queries(self, squares: Sequence[Image.Image]) -> Tensor:
        return self.model.queries(self._features(squares))

    def _max_prompt_tokens(self, max_new_tokens: int) -> int:
        """Return the largest prompt length in tokens, beside the queries and the new tokens."""
        positions = int(getattr(self.language.language_model.config, "max_position_embeddings", T5_POSITIONS))
        queries = self.model.qformer.config.queries
        taken = queries + 1 + (0 if self.language.is_encoder_decoder else max_new_tokens)
        if taken >= positions:
            raise InputError(
                f"max_new_tokens is {max_new_tokens}, and this language model has {positions} positions, {queries} of "
                f"them for the image: use at most {positions - queries - 2}."
            )
        return positions - taken


def _normalized(question: str) -> str:
    return re.sub(r"[^\w\s']", "", question.lower()).strip()

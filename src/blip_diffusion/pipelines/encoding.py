"""The encode step: references to subject tokens, prompts to text states; both are cached."""

from inspect import signature
from typing import Any, cast, get_args

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.argument_checks import choice, one_text
from blip_diffusion.errors import InputError
from blip_diffusion.framing import Box, default_boxes, frames_of
from blip_diffusion.images import ResizeMode
from blip_diffusion.nn_utils import tensor_bytes, weights_version
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, repeat
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import CallArguments, PipelineInputs, prepare_inputs
from blip_diffusion.pipelines.locking import exclusive
from blip_diffusion.pipelines.prompt_inputs import PromptInputs, on_device
from blip_diffusion.pipelines.prompt_weighting import plain_text, weighted_states
from blip_diffusion.prompts import warn_of_dropped
from blip_diffusion.references import SquareReference, check_not_blank, square_reference


class EncodingMixin(PipelineHost):
    """`encode_subject`, and the encodings of a call."""

    @torch.no_grad()
    @exclusive
    def encode_subject(
        self, reference_images: OneOrMany[Image.Image], category: str, *, resize_mode: ResizeMode | None = None
    ) -> Tensor:
        """Encode reference images of one subject, to pass as `subject_embeds`.

        Args:
            reference_images: One image, or several of the same subject.
            category: What the subject is, for example "dog".
            resize_mode: How images become square: "crop", "squash", "pad" or "subject"; by default the model's.

        Returns:
            Subject tokens (1, Q, D); the mean over several images.

        Raises:
            InputError: If there is no image, or one is not a PIL image, too small or too large.

        Example:
            >>> tokens = pipe.encode_subject([front, side], "dog")
            >>> pipe("on the beach", target_subject_category="dog", subject_embeds=tokens).images[0]
        """
        words = one_text("category", category)
        return self._encode_subjects([as_list(reference_images)], [words], resize_mode)[0]

    @torch.no_grad()
    @exclusive
    def encode_prompt(
        self,
        prompt: str,
        reference_image: Image.Image | None = None,
        source_subject_category: str = "",
        target_subject_category: str = "",
        *,
        negative_prompt: str = "",
        prompt_weighting: bool = False,
        resize_mode: ResizeMode | None = None,
        subject_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the text states that a call with the same arguments gives to the U-Net.

        Args:
            prompt: The scene, without the subject: "on the beach".
            reference_image: An image of the subject; see `__call__`.
            source_subject_category: What the reference shows.
            target_subject_category: What to generate it as; by default the same.
            negative_prompt: What should not appear.
            prompt_weighting: Whether words have weights; see `__call__`.
            resize_mode: How the reference becomes square; by default the model's.
            subject_embeds: Subject tokens (1, Q, D) in place of a reference.

        Returns:
            Text states (1, L, D) of the prompt with the subject in it, and of the negative prompt, to pass as
            `prompt_embeds` and `negative_prompt_embeds`, or to another sampler.

        Raises:
            InputError: If there is no subject, or arguments do not fit together.

        Example:
            >>> embeds, negative = pipe.encode_prompt("on the beach", photo, "dog", "dog")
            >>> pipe(prompt_embeds=embeds, negative_prompt_embeds=negative).images[0]
        """
        own = {name: value for name, value in locals().items() if name != "self"}
        defaults = {name: one.default for name, one in signature(cast(Any, self)).parameters.items()}
        inputs = prepare_inputs(self, CallArguments.select(defaults | own | {"generator": torch.Generator()}))
        return self._prompt_states(inputs), self._negative_states(inputs)

    def preview_reference(self, image: Image.Image, *, resize_mode: ResizeMode | None = None) -> Image.Image:
        """Return the square of a reference that the image encoder reads.

        Args:
            image: The reference.
            resize_mode: How it becomes square: "crop", "squash", "pad" or "subject"; by default the model's.

        Returns:
            An RGB image of the encoder's size.

        Example:
            >>> pipe.preview_reference(Image.open("dog.jpg")).save("what-the-encoder-sees.png")
        """
        return self._square([image], resize_mode)[0].image

    def _encode(self, inputs: PipelineInputs) -> tuple[Tensor, Tensor | None]:
        """Return text states (B, L, D) of the prompts with the subjects in them, and of the negative prompts.

        States of several subjects, and those without a subject for a subject scale, are concatenated along L. Those of
        the negative prompts are repeated to that length, which doesn't change attention.
        """
        text = self._prompt_states(inputs)
        negative = self._negative_states(inputs) if inputs.guided else None
        if negative is not None:
            negative = negative.repeat(1, text.shape[1] // negative.shape[1], 1)
        return text, negative

    def _negative_states(self, inputs: PipelineInputs) -> Tensor:
        """Return text states (B, L, D) of the negative prompts."""
        given, copies = inputs.texts.negative_prompt_embeds, inputs.num_images_per_prompt
        if given is not None:
            return on_device(given, self._execution_device).repeat_interleave(copies, dim=0)
        prompts = inputs.texts.negative_prompts
        weighted = inputs.texts.weighted
        plain = [plain_text(prompt) for prompt in prompts] if weighted else prompts
        warn_of_dropped(self.tokenizer, plain, self.model.text_length, "The negative prompt")
        return self._encode_text(repeat(prompts, copies), weighted=weighted)

    def _prompt_states(self, inputs: PipelineInputs) -> Tensor:
        """Return text states (B, L, D) of the prompts with the subjects in them."""
        texts, copies = inputs.texts, inputs.num_images_per_prompt
        if texts.prompt_embeds is not None:
            return on_device(texts.prompt_embeds, self._execution_device).repeat_interleave(copies, dim=0)
        composition = inputs.composition
        if composition is None:
            sentences = [(texts, inputs.boxes)]
        else:
            boxes = [None if box is None else [box] * len(texts) for box in composition.boxes]
            sentences = list(zip(composition.parts, boxes, strict=True))
        subjects = [self._subject_tokens(inputs, part, boxes) for part, boxes in sentences]
        in_one = composition is not None and composition.visibility is None
        if in_one:
            states = self._sentence_states(inputs, subjects, [part for part, _ in sentences])
        else:
            states = torch.cat(
                [
                    self._single_states(part, copies, *subject)
                    for (part, _), subject in zip(sentences, subjects, strict=True)
                ],
                dim=1,
            )
        if inputs.subject_scale.changes:
            bare = [texts] if in_one else [part for part, _ in sentences]
            without = [self._encode_text(repeat(part.prompts, copies), weighted=part.weighted) for part in bare]
            states = torch.cat([states, *without], dim=1)
        return states

    def _subject_tokens(
        self, inputs: PipelineInputs, texts: PromptInputs, boxes: list[Box] | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return subject tokens (N, Q, D) and the frames of references in the images (N, K, 4)."""
        aspects = [1.0] * len(texts)
        if texts.subject_embeds is not None:
            subject = texts.subject_embeds.to(self._execution_device).expand(len(texts), -1, -1)
        else:
            references = [as_list(reference) for reference in texts.references]
            subject, aspects = self._encode_subjects(references, texts.categories, inputs.resize_mode)
        return subject, self._frames(inputs, texts, aspects, boxes)

    def _single_states(self, texts: PromptInputs, copies: int, subject: Tensor, frames: Tensor | None) -> Tensor:
        """Return text states (B, L, D) of prompts with one subject each."""
        warn_of_dropped(self.tokenizer, texts.sentences, self.model.text_length - subject.shape[1])
        frames = None if frames is None else frames.repeat_interleave(copies, dim=0)
        subject = subject.repeat_interleave(copies, dim=0)
        return self._encode_text(repeat(texts.prompts, copies), subject, frames, weighted=texts.weighted)

    def _sentence_states(
        self, inputs: PipelineInputs, subjects: list[tuple[Tensor, Tensor | None]], parts: list[PromptInputs]
    ) -> Tensor:
        """Return text states (B, L, D) of prompts with all subjects in each."""
        texts, copies = inputs.texts, inputs.num_images_per_prompt
        if texts.weighted:
            raise InputError(
                "prompt_weighting and several subjects in one sentence exclude each other: give each a box."
            )
        tokens = [subject for subject, _ in subjects]
        warn_of_dropped(self.tokenizer, texts.sentences, self.model.text_length - sum(t.shape[1] for t in tokens))
        states = self.model.several_subjects_states(
            texts.prompts,
            [part.targets[0] for part in parts],
            tokens,
            [frames for _, frames in subjects],
            device=self._execution_device,
        )
        return states.repeat_interleave(copies, dim=0)

    def _frames(
        self, inputs: PipelineInputs, texts: PromptInputs, aspects: list[float], boxes: list[Box] | None
    ) -> Tensor | None:
        """Return the frames of the references in the images (N, K, 4); `None` for a model without placed tokens."""
        if not self.model.place_width:
            return None
        rows = [[box] for box in boxes] if boxes is not None else None
        if rows is None:
            rows = [default_boxes(text, aspect) for text, aspect in zip(texts.sentences, aspects, strict=True)]
        height, width = inputs.latents.shape[-2:]
        return frames_of(rows, aspect=width / height)

    def _encode_subjects(
        self, references: list[list[Image.Image]], categories: list[str], mode: ResizeMode | None
    ) -> tuple[Tensor, list[float]]:
        """Return the tokens (N, Q, D) of N subjects, the mean over the images of each, and their mean proportions."""
        if not all(references):
            raise InputError("There is no image of the subject: give one or more.")
        squares = self._square([image for group in references for image in group], mode)
        words = [word for group, word in zip(references, categories, strict=True) for _ in group]
        counts = [len(group) for group in references]
        tokens = torch.split(self._encode_references(squares, words), counts)
        aspects = torch.split(torch.tensor([square.aspect for square in squares], dtype=torch.float64), counts)
        return torch.cat([one.mean(dim=0, keepdim=True) for one in tokens]), [float(one.mean()) for one in aspects]

    def _square(self, references: list[Image.Image], mode: ResizeMode | None) -> list[SquareReference]:
        """Return references as the squares that the image encoder reads."""
        if not all(isinstance(image, Image.Image) for image in references):
            raise InputError("A reference is a PIL image, or a list of them: Image.open reads a file.")
        if mode is not None:
            choice("resize_mode", mode, get_args(ResizeMode))
        for image in references:
            images.check_size(image)
        return [square_reference(self.model, image, mode) for image in references]

    def _encode_references(self, references: list[SquareReference], categories: list[str]) -> Tensor:
        """Return subject tokens (B, Q, D)."""
        squares = [reference.image for reference in references]
        for square in squares:
            check_not_blank(square)
        version = weights_version(self.qformer)
        keys = [(version, word, square.tobytes()) for square, word in zip(squares, categories, strict=True)]

        def compute(indices: list[int]) -> Tensor:
            pixels = images.to_tensor([squares[index] for index in indices]).to(self._execution_device)
            return self.model.subject_tokens(pixels, [categories[index] for index in indices])

        return self._cache.get(keys, compute)

    def _encode_text(
        self,
        prompts: list[str],
        subject: Tensor | None = None,
        frames: Tensor | None = None,
        *,
        weighted: bool = False,
    ) -> Tensor:
        """Return text states (B, L, D)."""
        version = weights_version(self.text_encoder)
        tokens = [b""] * len(prompts) if subject is None else [tensor_bytes(one) for one in subject]
        positions = [b""] * len(prompts) if frames is None else [tensor_bytes(one) for one in frames]
        keys = [(version, weighted, *key) for key in zip(prompts, tokens, positions, strict=True)]

        def compute(indices: list[int]) -> Tensor:
            subjects = None if subject is None else subject[indices]
            places = None if frames is None else frames[indices]
            texts = [prompts[i] for i in indices]
            if weighted:
                return self._weighted_states(texts, subjects, places)
            return self.model.text_states(texts, subjects, places, device=self._execution_device)

        return self._cache.get(keys, compute)

    def _weighted_states(self, texts: list[str], subject: Tensor | None, frames: Tensor | None) -> Tensor:
        """Return text states (B, L, D) of prompts whose words have weights."""
        length, device = self.model.text_length, self._execution_device
        subjects = [None] * len(texts) if subject is None else list(subject.to(device))
        states = [
            weighted_states(self.text_encoder, self.tokenizer, text, one, length=length, device=device)
            for text, one in zip(texts, subjects, strict=True)
        ]
        return self.model.with_positions(torch.cat(states), subject, frames)

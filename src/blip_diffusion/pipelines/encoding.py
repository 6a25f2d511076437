"""The encode step: references to subject tokens, prompts to text states; both are cached."""

import torch
from PIL import Image
from torch import Tensor

from blip_diffusion import images
from blip_diffusion.errors import InputError
from blip_diffusion.images import ResizeMode
from blip_diffusion.nn_utils import tensor_bytes, weights_version
from blip_diffusion.pipelines.broadcast import OneOrMany, as_list, repeat
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.inputs import PipelineInputs
from blip_diffusion.prompts import warn_of_dropped


class EncodingMixin(PipelineHost):
    """`encode_subject`, and the encodings of a call."""

    @torch.no_grad()
    def encode_subject(
        self, reference_images: OneOrMany[Image.Image], category: str, *, resize_mode: ResizeMode = "crop"
    ) -> Tensor:
        """Encode reference images of one subject, to pass as `subject_embeds`.

        Args:
            reference_images: One image, or several of the same subject.
            category: What the subject is, for example "dog".
            resize_mode: How images become square: "crop", "squash" or "pad".

        Returns:
            Subject tokens (1, Q, D); the mean over several images.

        Raises:
            InputError: If there is no image, or one is not a PIL image, too small or too large.

        Example:
            >>> tokens = pipe.encode_subject([front, side], "dog")
            >>> pipe("on the beach", target_subject_category="dog", subject_embeds=tokens).images[0]
        """
        references = as_list(reference_images)
        if not references:
            raise InputError("There is no image of the subject: give one or more.")
        tokens = self._encode_references(references, [category] * len(references), resize_mode)
        return tokens.mean(dim=0, keepdim=True)

    def _encode(self, inputs: PipelineInputs) -> tuple[Tensor, Tensor | None]:
        """Return text states (B, L, D) of the prompts with the subjects in them, and of the negative prompts."""
        if inputs.subject_embeds is not None:
            subject = inputs.subject_embeds.to(self._execution_device).expand(len(inputs.prompts), -1, -1)
        else:
            subject = self._encode_references(inputs.references, inputs.categories, inputs.resize_mode)
        warn_of_dropped(self.tokenizer, inputs.sentences, self.model.text_length - subject.shape[1])
        warn_of_dropped(self.tokenizer, inputs.negative_prompts, self.model.text_length)
        copies = inputs.num_images_per_prompt
        text = self._encode_text(repeat(inputs.prompts, copies), subject.repeat_interleave(copies, dim=0))
        return text, self._encode_text(repeat(inputs.negative_prompts, copies)) if inputs.guided else None

    def _encode_references(self, references: list[Image.Image], categories: list[str], mode: ResizeMode) -> Tensor:
        """Return subject tokens (B, Q, D)."""
        if not all(isinstance(image, Image.Image) for image in references):
            raise InputError("A reference is a PIL image, or a list of them: Image.open reads a file.")
        for image in references:
            images.check_size(image)
        squares = [images.fit_square(images.as_rgb(image), self.image_processor.size, mode) for image in references]
        version = weights_version(self.qformer)
        keys = [(version, word, square.tobytes()) for square, word in zip(squares, categories, strict=True)]

        def compute(indices: list[int]) -> Tensor:
            pixels = images.to_tensor([squares[index] for index in indices]).to(self._execution_device)
            return self.model.subject_tokens(pixels, [categories[index] for index in indices])

        return self._cache.get(keys, compute)

    def _encode_text(self, prompts: list[str], subject: Tensor | None = None) -> Tensor:
        """Return text states (B, L, D)."""
        version = weights_version(self.text_encoder)
        tokens = [b""] * len(prompts) if subject is None else [tensor_bytes(one) for one in subject]
        keys = [(version, prompt, one) for prompt, one in zip(prompts, tokens, strict=True)]

        def compute(indices: list[int]) -> Tensor:
            chosen = None if subject is None else subject[indices]
            return self.model.text_states([prompts[i] for i in indices], chosen, device=self._execution_device)

        return self._cache.get(keys, compute)

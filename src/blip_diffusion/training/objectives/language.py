"""Stage 2 of BLIP-2, vision-to-language generative learning (Li, Li, Savarese & Hoi 2023, section 3.2).

The Q-Former reads an image without words, a linear layer projects its queries to a prefix, and a frozen language
model continues it. With a decoder-only model the loss is that of the caption's next token; with an encoder-decoder the
caption is split at a random word: the encoder reads the prefix and the first part, the decoder predicts the second.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from blip_diffusion.blip2 import Blip2
from blip_diffusion.checkpoint.language import save_language
from blip_diffusion.checkpoint.model_folder import save_subject_model
from blip_diffusion.data.batches import DescribedImage, SubjectBatch, described, with_category_captions
from blip_diffusion.errors import ConfigError
from blip_diffusion.model import SubjectEncoder
from blip_diffusion.modules.language import IGNORED, LanguagePrefix
from blip_diffusion.prompts import Words, caption_words, without_end
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext


@dataclass(frozen=True)
class LanguageConfig:
    """Language model, captions and learning rates of the language stage."""

    language_model: Path | None = None
    """Folder of a language model, as transformers saves it; `None`: `language/` of the first folder of
    `model.init_from` that has one."""
    image: DescribedImage = "target"
    prompt: str = ""  # words before each caption, not in the loss
    max_caption_tokens: int = 32  # longer captions are truncated
    category_captions: float = 0.0
    """Share of captions that are cut to "a {category}" in training, without a target for their end: a model that is
    trained to stop there stops there in captions too."""
    qformer_lr_scale: float = 1.0  # factor of the learning rate; 0 freezes the Q-Former
    projection_lr_scale: float = 1.0  # factor of the learning rate

    def __post_init__(self) -> None:
        if self.max_caption_tokens < 2:
            raise ConfigError(f"language.max_caption_tokens is {self.max_caption_tokens}: use 2 or more.")

    @property
    def freezes_qformer(self) -> bool:
        """Whether only the projection is trained."""
        return self.qformer_lr_scale == 0


class EncodedImages(TypedDict):
    """A batch with the outputs of the frozen layers."""

    caption: list[str]
    category: list[str]
    features: Tensor  # (B, N, V) features before the layer norm, or, of a frozen Q-Former, query states (B, Q, D)


class LanguageStage(Objective):
    """Train the projection and the Q-Former's layers for images; the tower and the language model are frozen.

    Args:
        encoder: Image encoder and Q-Former, a copy of stage 1's; its layers for words no longer fit after training.
        blip2: The same two, with the projection, the frozen language model and the tokenizers.
        config: The settings.
    """

    def __init__(self, encoder: SubjectEncoder, blip2: Blip2, config: LanguageConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.blip2 = blip2
        self.config = config

    @property
    def language(self) -> LanguagePrefix:
        """Projection and frozen language model."""
        return self.blip2.language_prefix

    def forward(self, batch: SubjectBatch | EncodedImages, context: StepContext) -> Losses:
        """Return the cross-entropy of the captions' tokens, in nats."""
        encoded = cast(EncodedImages, batch) if "features" in batch else self.encode(batch)
        captions = encoded["caption"]
        if self.training and self.config.category_captions:
            share = self.config.category_captions
            captions = with_category_captions(captions, encoded["category"], share, context.rng)
        shortened = [short != caption for short, caption in zip(captions, encoded["caption"], strict=True)]
        return {"loss": self.loss(self._queries(encoded["features"]), captions, context.rng, shortened=shortened)}

    @torch.no_grad()
    def encode(self, batch: SubjectBatch) -> EncodedImages:
        """Return the outputs of the frozen layers, which can be cached when images repeat."""
        pixels, captions = described(batch, self.config.image)
        features = self.blip2.image_encoder.features(self.blip2.pixels(pixels))
        if self.config.freezes_qformer:
            features = self.blip2.queries(self.blip2.image_encoder.norm(features))
        return {"caption": captions, "category": batch["category"], "features": features}

    def _queries(self, features: Tensor) -> Tensor:
        if self.config.freezes_qformer:
            return features
        return self.blip2.queries(self.blip2.image_encoder.norm(features))

    def loss(
        self, queries: Tensor | None, captions: Sequence[str], rng: torch.Generator, *, shortened: Sequence[bool] = ()
    ) -> Tensor:
        """Return the mean cross-entropy of captions after a prefix, or without one if `queries` is `None`.

        Args:
            queries: (B, Q, D), or `None`.
            captions: B captions.
            rng: Chooses where captions are split for an encoder-decoder.
            shortened: Whether each caption is a shortened one, so that its end is no target; empty for none.
        """
        words, labels = self._split(captions, rng) if self.language.is_encoder_decoder else self._unsplit(captions)
        labels = without_end(labels, shortened)
        device = self.blip2.device
        words = words.to(device)
        output = self.language(queries, words.input_ids, words.attention_mask, labels.to(device))
        loss: Tensor = output.loss
        return loss

    def _unsplit(self, captions: Sequence[str]) -> tuple[Words, Tensor]:
        return caption_words(
            self.blip2.tokenizer,
            captions,
            self.blip2.special,
            limit=self.config.max_caption_tokens,
            prompt=self.config.prompt,
        )

    def _split(self, captions: Sequence[str], rng: torch.Generator) -> tuple[Words, Tensor]:
        """Return the first words for the encoder, which may be none, and the rest as the decoder's labels."""
        first, second = [], []
        for caption in captions:
            words = caption.split()
            at = int(torch.randint(max(len(words), 1), (), generator=rng, device=rng.device))
            first.append(" ".join([self.config.prompt, *words[:at]]).strip())
            second.append(" ".join(words[at:]))
        inputs, targets = (self._tokenize(texts) for texts in (first, second))
        return inputs, targets.input_ids.masked_fill(targets.attention_mask == 0, IGNORED)

    def _tokenize(self, texts: Sequence[str]) -> Words:
        encoded = self.blip2.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.config.max_caption_tokens, return_tensors="pt"
        )
        return Words(encoded.input_ids, encoded.attention_mask)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return queries, attention and the queries' feed-forward layers; the layer norm of the tower; the projection.

        Layers that only words pass are left out, since they get no gradient.
        """
        projection = ParameterGroup(
            "projection", list(self.language.projection.parameters()), self.config.projection_lr_scale
        )
        if self.config.freezes_qformer:
            return [projection]
        qformer = self.blip2.qformer
        word_layers = ("word_embeddings.", "position_embeddings.")
        trainable = [
            parameter
            for name, parameter in qformer.named_parameters()
            if not name.startswith(word_layers) and "word_feed_forward" not in name
        ]
        trainable += self.blip2.image_encoder.norm.parameters()
        return [ParameterGroup("qformer", trainable, self.config.qformer_lr_scale), projection]

    def train(self, mode: bool = True) -> "LanguageStage":
        super().train(mode)
        if self.config.freezes_qformer:
            self.blip2.qformer.eval()
        return self

    def export(self, folder: Path) -> None:
        """Write the Q-Former's folders and `language/`; not the heads, which fit stage 1's layers for words."""
        save_subject_model(self.encoder, self.blip2.qformer_tokenizer, self.blip2.reference, folder)
        source = self.config.language_model  # which may be large, and is frozen
        save_language(self.language, self.blip2.tokenizer, folder / "language", source=source)


def blip2_of(encoder: SubjectEncoder, language: LanguagePrefix, **more: Any) -> Blip2:
    """Join an encoder and a language part; `more` are the other arguments of `Blip2`."""
    return Blip2(encoder.image_encoder, encoder.qformer, language=language, **more)

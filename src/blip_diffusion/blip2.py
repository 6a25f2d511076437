"""BLIP-2 on one screen (Li, Li, Savarese & Hoi 2023): captions and answers from images, and image-text retrieval.

    image ─► image_encoder ─► qformer ─┬─► language (projection, frozen language model) ─► captions, answers
                                       └─► contrastive (ITC) and matching (ITM), with words ─► similarity of a sentence

Letters: `B` images, `C` sentences, `Q` queries, `D` query width, `E` width of the contrastive vectors, `N` patches.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from blip_diffusion.argument_checks import choice
from blip_diffusion.errors import CheckpointError
from blip_diffusion.images import preprocess
from blip_diffusion.model import ReferenceConfig
from blip_diffusion.modules.heads import ContrastiveHead, MatchingHead
from blip_diffusion.modules.image_encoder import ImageEncoder
from blip_diffusion.modules.language import LanguagePrefix
from blip_diffusion.modules.qformer import AttentionPattern, QFormer
from blip_diffusion.prompts import SpecialIds, Words

MAX_SENTENCE = 35
"""Tokens of a sentence in retrieval, as in the published code."""
RerankScore = Literal["published", "posterior"]
"""How ITM and ITC are added: `Blip2.rerank_scores` defines both."""


class Blip2(nn.Module):
    """BLIP-2 with its optional parts: `language` generates captions, the two heads compare sentences with images.

    Args:
        image_encoder: Frozen tower and layer norm.
        qformer: The Q-Former; the heads need one that reads words.
        reference: How images become square, and their normalization.
        language: Projection and frozen language model.
        tokenizer: The language model's tokenizer.
        contrastive: Head of ITC.
        matching: Head of ITM.
        qformer_tokenizer: The Q-Former's tokenizer.
        image_token: Placeholder id of a query in transformers' prompts; only saved with the model.
        has_temperature: Whether the temperature of `contrastive` is a trained one.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        qformer: QFormer,
        *,
        reference: ReferenceConfig,
        language: LanguagePrefix | None = None,
        tokenizer: Any = None,
        contrastive: ContrastiveHead | None = None,
        matching: MatchingHead | None = None,
        qformer_tokenizer: Any = None,
        image_token: int | None = None,
        has_temperature: bool = True,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.qformer = qformer
        self.reference = reference
        self.language = language
        self.tokenizer = tokenizer
        self.contrastive = contrastive
        self.matching = matching
        self.qformer_tokenizer = qformer_tokenizer
        self.image_token = image_token
        self.has_temperature = has_temperature

    @property
    def special(self) -> SpecialIds:
        """Ids of the language model's special tokens."""
        return SpecialIds.of(self.language_prefix.language_model.config)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.qformer.query_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the Q-Former."""
        return self.qformer.query_tokens.dtype

    @property
    def language_prefix(self) -> LanguagePrefix:
        """Projection and language model. Raises `CheckpointError` if the model has none."""
        if self.language is None:
            raise CheckpointError("This model has no language model: use one with the folder language/, or train one.")
        return self.language

    @property
    def itc_head(self) -> ContrastiveHead:
        """The head of ITC. Raises `CheckpointError` if the model has none."""
        if self.contrastive is None:
            raise CheckpointError(
                "This model has no heads that compare images with words: use one with heads.safetensors, as stage 1 of "
                "BLIP-2 exports it."
            )
        return self.contrastive

    @property
    def itm_head(self) -> MatchingHead:
        """The head of ITM. Raises `CheckpointError` if the model has none."""
        if self.matching is None:
            raise CheckpointError(
                "This model was trained without matching (ITM), so it can't rerank: use rerank=0 (--rerank 0)."
            )
        return self.matching

    def pixels(self, images: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1], resized and normalised for the image encoder."""
        pixels = preprocess(images, self.reference.size, self.reference.mean, self.reference.std)
        return pixels.to(self.dtype)

    def features(self, pixels: Tensor) -> Tensor:
        """Return features (B, N, V) of images (B, 3, H, W) in [0, 1], after the layer norm."""
        features: Tensor = self.image_encoder(self.pixels(pixels))
        return features

    def queries(self, features: Tensor) -> Tensor:
        """Return query states (B, Q, D) of features (B, N, V), without words."""
        states: Tensor = self.qformer(features, pattern=AttentionPattern.UNIMODAL).queries
        return states

    def image_vectors(self, features: Tensor) -> Tensor:
        """Return unit vectors (B, Q, E) of features (B, N, V), one for each query."""
        return self.itc_head.images(self.queries(features))

    def sentence_vectors(self, words: Words) -> Tensor:
        """Return unit vectors (C, E) of sentences, token ids (C, L) of the Q-Former's tokenizer."""
        states = self.qformer(None, words.input_ids, words.attention_mask, AttentionPattern.UNIMODAL)
        return self.itc_head.sentences(states.words)

    def itc(self, images: Tensor, sentences: Tensor) -> Tensor:
        """Return cosines (B, C) of vectors (B, Q, E) and (C, E), each of the best query."""
        return self.itc_head.cosines(images, sentences)

    def itm(self, features: Tensor, words: Words) -> Tensor:
        """Return matching logits (B, 2) of B images with B sentences; the second is that of a match."""
        states = self.qformer(features, words.input_ids, words.attention_mask, AttentionPattern.BIDIRECTIONAL)
        logits: Tensor = self.itm_head(states.queries)
        return logits

    def rerank_scores(self, logits: Tensor, cosines: Tensor, kind: RerankScore = "published") -> Tensor:
        """Return scores (P,) of P pairs of an image and a sentence, by which candidates of ITC are ranked again.

        "published" is ITM's logit of a match plus ITC's cosine, as in LAVIS. "posterior" is ITM's log odds of a match
        plus cosine / τ. ITM is trained to tell pairs p from hard negatives, which are sampled from ITC's
        q = softmax(cosine / τ). The odds of the best classifier are p / q up to a factor, so log odds + log q is log p
        (noise-contrastive estimation, Gutmann & Hyvärinen 2012, section 2).

        Args:
            logits: (P, 2) of `itm`.
            cosines: (P,) of `itc`.
            kind: The formula.

        Returns:
            Scores, higher is better. Those of one image or of one sentence can be compared.

        Raises:
            InputError: For another kind.
            CheckpointError: For "posterior" and a folder of transformers, which doesn't contain τ.

        Example:
            >>> model.rerank_scores(model.itm(features, words), cosines, "posterior")
        """
        logits, cosines = logits.float(), cosines.float()
        if choice("rerank_score", kind, get_args(RerankScore)) == "published":
            return logits[:, 1] + cosines
        if not self.has_temperature:
            raise CheckpointError(
                "This folder of transformers doesn't contain ITC's temperature, which the score posterior divides by: "
                "use published."
            )
        return logits[:, 1] - logits[:, 0] + cosines / self.itc_head.clamped_temperature.to(cosines)

    def sentence_words(self, sentences: Sequence[str]) -> Words:
        """Return token ids of C sentences, truncated to `MAX_SENTENCE` tokens, on the model's device."""
        limit = min(MAX_SENTENCE, self.qformer.config.positions)
        encoded = self.qformer_tokenizer(
            list(sentences), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        )
        return Words(encoded.input_ids, encoded.attention_mask).to(self.device)

"""Stage 1, multimodal representation learning (Li, Li, Savarese & Hoi 2023, section 3.1): ITC, ITG and ITM.

One Q-Former under three attention patterns. Contrast (unimodal): each image and its caption are told from the others of
the batch. Generation (multimodal causal): the caption is generated from the queries. Matching (bidirectional): pairs
are told from hard negatives. A fourth loss, not in the paper: the subject is reconstructed from its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip_diffusion.checkpoint.components import save_heads
from blip_diffusion.checkpoint.model_folder import save_subject_model
from blip_diffusion.data.batches import DescribedImage, SubjectBatch, described, with_category_captions
from blip_diffusion.errors import ConfigError
from blip_diffusion.images import preprocess
from blip_diffusion.model import ReferenceConfig, SubjectEncoder
from blip_diffusion.modules.heads import ContrastiveHead, LanguageHead, MatchingHead, reconstruction_loss
from blip_diffusion.modules.qformer import AttentionPattern
from blip_diffusion.prompts import Words, category_words, without_end
from blip_diffusion.protocols import Tokenizer
from blip_diffusion.training.objective import Gather, Losses, Objective, ParameterGroup, StepContext


@dataclass(frozen=True)
class RepresentationConfig:
    """Weights of the objectives, of which ITM and ITG are left out at 0, and how often the three are computed."""

    itc_weight: float = 1.0
    itm_weight: float = 1.0
    itg_weight: float = 1.0
    reconstruction_weight: float = 0.0
    image: DescribedImage = "reference"  # the encoded image; "target" to caption and to search whole images
    multimodal_every: int = 1  # steps between steps with ITC, ITM and ITG; the reconstruction loss is in each step
    category_captions: float = 0.0
    """Share of captions replaced by "a {category}" in training: with a whole caption, the scene alone tells the images
    of a batch apart."""
    max_caption_tokens: int = 32  # longer captions are truncated
    smoothing: float = 0.1  # label smoothing of ITC and ITG
    lr_scale: float = 1.0  # times the schedule

    def __post_init__(self) -> None:
        for name in ("multimodal_every", "max_caption_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"representation.{name} is {getattr(self, name)}: use 1 or more.")
        if self.image == "target" and self.reconstruction_weight:
            raise ConfigError("representation.image is target, and only references are reconstructed: set "
                              "representation.reconstruction_weight to 0.")  # fmt: skip
        if self.multimodal_every > 1 and not self.reconstruction_weight:
            raise ConfigError(
                f"representation.multimodal_every is {self.multimodal_every}, and without reconstruction_weight the "
                "other steps have no loss: use 1, or a reconstruction_weight above 0."
            )


class EncodedPairs(TypedDict):
    """Images and captions of a batch, with the outputs of the frozen layers."""

    caption: list[str]
    category: list[str]
    features: Tensor  # (B, N, V) of the frozen tower
    identity: Tensor  # (B,)


@dataclass(frozen=True)
class Shared:
    """Tensors of all G micro-batch samples of a step, without gradient."""

    images: Tensor  # (G, Q, E) unit vectors
    sentences: Tensor  # (G, E) unit vectors
    features: Tensor  # (G, N, V) of the frozen tower
    input_ids: Tensor  # (G, L)
    attention_mask: Tensor  # (G, L)
    identity: Tensor  # (G,)


class Representation(Objective):
    """Train the Q-Former and the heads; the image encoder is frozen except for its last layer norm.

    loss = itc_weight · ITC + itm_weight · ITM + itg_weight · ITG + reconstruction_weight · |object crop -
    head(tokens)|_1. ITC: cross-entropy of the similarities max_q ⟨z_q, t⟩ / τ, both ways; ITM: binary cross-entropy of
    true pairs against hard negatives; ITG: language modelling of the caption (Li, Li, Savarese & Hoi 2023, section
    3.1).

    Args:
        encoder: Image encoder, Q-Former and projection.
        tokenizer: The Q-Former's tokenizer.
        reference: Size and normalization of reference images.
        heads: `contrastive`, `matching`, `language` and `reconstruction`.
        config: The weights.
    """

    def __init__(
        self,
        encoder: SubjectEncoder,
        tokenizer: Tokenizer,
        reference: ReferenceConfig,
        heads: nn.ModuleDict,
        config: RepresentationConfig,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.reference = reference
        self.heads = heads
        self.config = config

    def forward(self, batch: SubjectBatch | EncodedPairs, context: StepContext) -> Losses:
        """Return ITC, ITM, ITG and reconstruction losses of the images and their captions."""
        encoded = self._encoded(batch)
        normed = self.encoder.image_encoder.norm(encoded["features"])
        losses: Losses = {}
        if context.step % self.config.multimodal_every == 0:
            captions = self._captions(encoded, context)
            shortened = [short != caption for short, caption in zip(captions, encoded["caption"], strict=True)]
            words = self._tokenize(captions).to(normed.device)
            losses |= self.multimodal_losses(
                normed, encoded["features"], words, encoded["identity"], context, shortened=shortened
            )
        if self.config.reconstruction_weight:
            pairs = cast(SubjectBatch, batch)
            reconstructions = self.reconstruct(normed, self._categories(pairs))
            losses["reconstruction"] = reconstruction_loss(reconstructions, pairs["object_crop"])
        losses["loss"] = self.weighted(losses)
        return losses

    @torch.no_grad()
    def encode(self, batch: SubjectBatch) -> EncodedPairs:
        """Return captions and the frozen tower's features, which can be cached when images repeat."""
        features = self.encoder.image_encoder.features(self._pixels(batch))
        _, captions = described(batch, self.config.image)
        return {
            "caption": captions,
            "category": batch["category"],
            "features": features,
            "identity": batch["identity"],
        }

    def _encoded(self, batch: SubjectBatch | EncodedPairs) -> EncodedPairs:
        return cast(EncodedPairs, batch) if "features" in batch else self.encode(batch)

    def weighted(self, losses: Losses) -> Tensor:
        """Return the weighted sum of the losses that were computed."""
        weights = {"contrast": self.config.itc_weight, "matching": self.config.itm_weight}
        weights |= {"generation": self.config.itg_weight, "reconstruction": self.config.reconstruction_weight}
        return torch.stack([weights[name] * loss for name, loss in losses.items() if name in weights]).sum()

    # ------------------------------------------------------------------------------------------- the three of BLIP-2

    def multimodal_losses(
        self,
        normed: Tensor,
        features: Tensor,
        words: Words,
        identity: Tensor,
        context: StepContext,
        *,
        shortened: Sequence[bool] = (),
    ) -> Losses:
        """Return ITC, ITM and ITG of images and their captions.

        Args:
            normed: (B, N, V) image features after the trained layer norm.
            features: (B, N, V) image features before it.
            words: The tokenized captions.
            identity: (B,), equal for images of one subject.
            context: The context of the step.
            shortened: Whether each caption is a shortened one, whose end is no target of ITG; empty for none.
        """
        losses = self._contrast_and_match(normed, features, words, identity, context)
        if self.config.itg_weight:
            losses["generation"] = self._generation(normed, words, shortened)
        return losses

    def _contrast_and_match(
        self, normed: Tensor, features: Tensor, words: Words, identity: Tensor, context: StepContext
    ) -> Losses:
        images, sentences = self._embedded(normed, words)
        shared = context.shared or Shared(
            images.detach(), sentences.detach(), features, words.input_ids, words.attention_mask, identity
        )
        pairs = context.position * len(normed) + torch.arange(len(normed), device=normed.device)
        head = self._contrastive
        to_text = head.similarity(images, shared.sentences)  # (B, G)
        to_image = head.similarity(shared.images, sentences).T  # (B, G)
        allowed = _candidates(pairs, identity, shared.identity, words.input_ids, shared.input_ids)
        losses = {"contrast": self._contrast(to_text, to_image, pairs, allowed)}
        losses["retrieval"] = (to_text.masked_fill(~allowed, -1e4).argmax(dim=1) == pairs).float().mean()
        if self.config.itm_weight:
            losses["matching"] = self._matching(normed, words, shared, to_text, to_image, allowed, pairs, context.rng)
        return losses

    def _contrast(self, to_text: Tensor, to_image: Tensor, pairs: Tensor, allowed: Tensor) -> Tensor:
        """Return ITC, cross-entropy both ways. Other images of the same subject are not used as negatives."""
        smoothing = self.config.smoothing
        losses = []
        for scores in (to_text, to_image):
            nll = -scores.float().masked_fill(~allowed, -1e4).log_softmax(dim=1)  # (B, G)
            positive = nll.gather(1, pairs[:, None]).squeeze(1)
            uniform = (nll * allowed).sum(dim=1) / allowed.sum(dim=1)
            losses.append(((1 - smoothing) * positive + smoothing * uniform).mean())
        return torch.stack(losses).mean()

    def _matching(
        self,
        normed: Tensor,
        words: Words,
        shared: Shared,
        to_text: Tensor,
        to_image: Tensor,
        allowed: Tensor,
        pairs: Tensor,
        rng: torch.Generator,
    ) -> Tensor:
        """Return ITM of true pairs, and of each image and each caption with a hard negative."""
        negatives = allowed.clone()
        negatives[torch.arange(len(pairs), device=pairs.device), pairs] = False
        if not negatives.any(dim=1).all():
            return normed.new_zeros(())  # a batch of one subject has no negatives
        negative_text, negative_image = (_sample_negatives(scores, negatives, rng) for scores in (to_text, to_image))
        negative_features = self.encoder.image_encoder.norm(shared.features[negative_image])
        features = torch.cat([normed, negative_features, normed])  # (3B, N, V)
        ids = torch.cat([words.input_ids, words.input_ids, shared.input_ids[negative_text]])
        mask = torch.cat([words.attention_mask, words.attention_mask, shared.attention_mask[negative_text]])
        states = self.encoder.qformer(features, ids, mask, AttentionPattern.BIDIRECTIONAL)
        labels = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        labels[: len(normed)] = 1
        return F.cross_entropy(self._matching_head(states.queries).float(), labels)

    def _generation(self, normed: Tensor, words: Words, shortened: Sequence[bool]) -> Tensor:
        """Return ITG, the loss of each next word given the queries and the words before it, from `[DEC]` on."""
        ids = words.input_ids.clone()
        ids[:, 0] = self.tokenizer.bos_token_id
        states = self.encoder.qformer(normed, ids, words.attention_mask, AttentionPattern.CAUSAL)
        embeddings = self.encoder.qformer.word_embeddings
        assert embeddings is not None  # a Q-Former with words
        logits = self._language(states.words[:, :-1], embeddings.weight)
        labels = ids[:, 1:].masked_fill(words.attention_mask[:, 1:] == 0, -100)
        labels = without_end(labels, shortened)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), label_smoothing=self.config.smoothing)

    # ----------------------------------------------------------------------------------------------- reconstruction

    def reconstruct(self, normed: Tensor, words: Words) -> Tensor:
        """Reconstruct RGB times alpha, and alpha, (B, 4, C, C), from image features (B, N, V) and categories."""
        states = self.encoder.qformer(normed, words.input_ids, words.attention_mask, AttentionPattern.BIDIRECTIONAL)
        return self._reconstruction_head(self.encoder.projection(states.queries)).float()

    # -------------------------------------------------------------------------------------------------------- parts

    def _categories(self, batch: SubjectBatch) -> Words:
        return category_words(self.tokenizer, batch["category"]).to(batch["reference"].device)

    def _pixels(self, batch: SubjectBatch) -> Tensor:
        pixels, _ = described(batch, self.config.image)
        return preprocess(pixels, self.reference.size, self.reference.mean, self.reference.std)

    def _captions(self, pairs: EncodedPairs, context: StepContext) -> list[str]:
        if not (self.training and self.config.category_captions):
            return pairs["caption"]
        rng = torch.Generator().manual_seed(1009 * context.step + context.position)  # equal in `_shared`
        return with_category_captions(pairs["caption"], pairs["category"], self.config.category_captions, rng)

    def _tokenize(self, captions: Sequence[str]) -> Words:
        length = self.config.max_caption_tokens
        encoded = self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return Words(encoded.input_ids, encoded.attention_mask)

    def _embedded(self, normed: Tensor, words: Words) -> tuple[Tensor, Tensor]:
        states = self.encoder.qformer(normed, words.input_ids, words.attention_mask, AttentionPattern.UNIMODAL)
        return self._contrastive.images(states.queries), self._contrastive.sentences(states.words)

    @property
    def _contrastive(self) -> ContrastiveHead:
        return self.heads["contrastive"]  # type: ignore[return-value]

    @property
    def _matching_head(self) -> MatchingHead:
        return self.heads["matching"]  # type: ignore[return-value]

    @property
    def _language(self) -> LanguageHead:
        return self.heads["language"]  # type: ignore[return-value]

    @property
    def _reconstruction_head(self) -> nn.Module:
        return self.heads["reconstruction"]

    # ----------------------------------------------------------------------------------------------------- protocol

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the Q-Former, the layer norm over image features, and the projection and heads that a loss uses."""
        encoder = self.encoder
        parameters = [*encoder.image_encoder.norm.parameters(), *encoder.qformer.parameters()]
        parameters += [parameter for head in self._used_heads().values() for parameter in head.parameters()]
        if self.config.reconstruction_weight:  # no other loss uses the projected tokens
            parameters += encoder.projection.parameters()
        return [ParameterGroup("qformer", parameters, self.config.lr_scale)]

    def _used_heads(self) -> dict[str, nn.Module]:
        """Return the heads of the losses that are computed; ITC always is."""
        config = self.config
        weights = {"matching": config.itm_weight, "language": config.itg_weight}
        weights |= {"reconstruction": config.reconstruction_weight}
        return {name: head for name, head in self.heads.items() if weights.get(name, 1.0)}

    def gather_step_context(
        self, batches: Sequence[SubjectBatch | EncodedPairs], contexts: Sequence[StepContext], gather: Gather
    ) -> Shared | None:
        """Gather the negatives of a step from all micro-batches, as the published code does."""
        if contexts[0].step % self.config.multimodal_every:
            return None
        if len(batches) == 1 and len(gather(torch.zeros(1, device=batches[0]["identity"].device))) == 1:
            return None
        rows = [self._shared(batch, context) for batch, context in zip(batches, contexts, strict=True)]
        names = Shared.__dataclass_fields__
        return Shared(**{name: gather(torch.cat([getattr(row, name) for row in rows])) for name in names})

    def _shared(self, batch: SubjectBatch | EncodedPairs, context: StepContext) -> Shared:
        encoded = self._encoded(batch)
        features = encoded["features"]
        words = self._tokenize(self._captions(encoded, context)).to(features.device)
        images, sentences = self._embedded(self.encoder.image_encoder.norm(features), words)
        return Shared(images, sentences, features, words.input_ids, words.attention_mask, encoded["identity"])

    def sample_images(self, batch: SubjectBatch) -> list[Tensor]:
        """Return references, their object crops and the reconstructions from the tokens."""
        if not self.config.reconstruction_weight:
            return []
        reconstructions = self.reconstruct(self.encoder.image_encoder(self._pixels(batch)), self._categories(batch))
        return [batch["reference"], batch["object_crop"][:, :3], reconstructions[:, :3]]

    def export(self, folder: Path) -> None:
        """Write the Q-Former's folder with its tokenizer, and the heads that a loss uses."""
        save_subject_model(self.encoder, self.tokenizer, self.reference, folder)
        save_heads(self._used_heads(), folder)


def _candidates(
    pairs: Tensor, identity: Tensor, identities: Tensor, input_ids: Tensor, all_input_ids: Tensor
) -> Tensor:
    """Return a mask (B, G) of each row's candidates: its partner, and all samples of other subjects and captions."""
    same_caption = (input_ids[:, None] == all_input_ids[None]).all(dim=-1)
    allowed = (identity[:, None] != identities[None, :]) & ~same_caption
    allowed[torch.arange(len(pairs), device=pairs.device), pairs] = True
    return allowed


@torch.no_grad()
def _sample_negatives(scores: Tensor, negatives: Tensor, rng: torch.Generator) -> Tensor:
    """Sample a negative per row (B,), with probabilities given by the softmax of the scores."""
    chances = scores.float().masked_fill(~negatives, -torch.inf).softmax(dim=1)
    return torch.multinomial(chances, 1, generator=rng).squeeze(1)

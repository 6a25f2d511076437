"""BLIP-Diffusion on one screen: the parts, and how an image and a prompt become the U-Net's conditioning.

    reference image ─► image_encoder ─► qformer ─► projection ─► subject tokens ─┐
    subject word ("dog") ──────────────────┘                                     ▼
    prompt ─────────────────────────────────────────────────────────────► text_encoder ─► text states ─► unet

Letters: `B` batch, `N` patches, `V` vision width, `Q` queries, `D` text width, `L` text length, `S` reference size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig

from blip_diffusion.diffusion.concatenation import concatenated, inpainting_channels, upscaling_channels
from blip_diffusion.diffusion.guidance import Denoiser, unet_denoiser
from blip_diffusion.diffusion.latents import LatentCodec
from blip_diffusion.framing import default_boxes, frames_of
from blip_diffusion.images import ResizeMode, preprocess
from blip_diffusion.modules.heads import SubjectFinder
from blip_diffusion.modules.image_encoder import ImageEncoder, ImageEncoderConfig
from blip_diffusion.modules.placed_unet import CODE_WIDTH, append_codes, is_placed, token_codes
from blip_diffusion.modules.projection import SubjectProjection
from blip_diffusion.modules.qformer import AttentionPattern, QFormer, QFormerConfig
from blip_diffusion.modules.text_encoder import SubjectTextEncoder
from blip_diffusion.prompts import Words, category_words, insert_position, insert_positions, prompt_ids
from blip_diffusion.protocols import Scheduler, Tokenizer

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP's text model. The defaults are the published shapes (ViT-L/14)."""

    vocabulary: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    positions: int = 77
    activation: str = "quick_gelu"


@dataclass(frozen=True)
class ReferenceConfig:
    """Size, normalisation and resize mode of the image encoder's input."""

    size: int = 224
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    resize_mode: ResizeMode = "crop"  # how a reference is made square


@dataclass(frozen=True)
class InferenceConfig:
    """A model's default sampling settings; the dataclass defaults are the published pipeline's."""

    prompt_reps: int = 20  # how often the prompt is repeated, to weigh more
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    noise_scale: float = 1.0  # standard deviation of the initial noise; below 1, images vary less and are plainer


@dataclass(frozen=True)
class ModelConfig:
    """Every shape of the model; the defaults are the published ones, on Stable Diffusion 1.5."""

    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    projection_inner: int = 3072
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    unet: Mapping[str, Any] = field(
        default_factory=lambda: {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    )
    vae: Mapping[str, Any] = field(  # empty: no autoencoder, the U-Net denoises pixels
        default_factory=lambda: {
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "sample_size": 512,
        }
    )


class SubjectEncoder(nn.Module):
    """Encoder of a subject's image and category to subject tokens: the `qformer/` folder of the published layout."""

    def __init__(self, image_encoder: ImageEncoder, qformer: QFormer, projection: SubjectProjection) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.qformer = qformer
        self.projection = projection

    def forward(self, pixels: Tensor, words: Words) -> Tensor:
        """Encode normalised pixels (B, 3, S, S) and their tokenized categories to subject tokens (B, Q, D)."""
        features = self.image_encoder(pixels)  # (B, N, V)
        states = self.qformer(features, words.input_ids, words.attention_mask, AttentionPattern.BIDIRECTIONAL)
        tokens: Tensor = self.projection(states.queries)  # (B, Q, D)
        return tokens

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.qformer.query_tokens.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.qformer.query_tokens.device


class BlipDiffusion(nn.Module):
    """The whole model: its parts, in the order of the data flow, and the flow."""

    def __init__(
        self,
        subject_encoder: SubjectEncoder,
        text_encoder: SubjectTextEncoder,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        *,
        tokenizer: Tokenizer,
        qformer_tokenizer: Tokenizer,
        scheduler: Scheduler,
        reference: ReferenceConfig,
        inference: InferenceConfig | None = None,
        subject_finder: SubjectFinder | None = None,
    ) -> None:
        super().__init__()
        self.subject_encoder = subject_encoder
        self.text_encoder = text_encoder
        self.unet = unet
        self.vae = vae
        self.tokenizer = tokenizer
        self.qformer_tokenizer = qformer_tokenizer
        self.scheduler = scheduler
        self.reference = reference
        self.inference = inference or InferenceConfig()
        self.subject_finder = subject_finder

    @property
    def latents(self) -> LatentCodec:
        """The codec between images and latents."""
        return LatentCodec(self.vae)

    @property
    def text_length(self) -> int:
        """Number of positions of the text encoder, subject tokens included."""
        return int(self.text_encoder.config.max_position_embeddings)

    def subject_tokens(self, pixels: Tensor, categories: Sequence[str]) -> Tensor:
        """Encode reference images (B, 3, H, W) in [0, 1] and their categories to subject tokens (B, Q, D)."""
        config = self.subject_encoder.qformer.config
        words = category_words(
            self.qformer_tokenizer, categories, limit=config.positions, vocabulary=config.vocabulary
        ).to(pixels.device)
        pixels = preprocess(pixels, self.reference.size, self.reference.mean, self.reference.std)
        tokens: Tensor = self.subject_encoder(pixels.to(self.subject_encoder.dtype), words)
        return tokens

    @property
    def place_width(self) -> int:
        """Width P of the position codes at the end of text states; 0 for a U-Net without placed tokens."""
        return CODE_WIDTH if is_placed(self.unet.config) else 0

    def text_states(
        self,
        prompts: Sequence[str],
        subject: Tensor | None = None,
        frames: Tensor | None = None,
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Encode full prompts, with subject tokens inserted among their words.

        Args:
            prompts: B full prompts, each with the words before the subject and the category.
            subject: Subject tokens (B, Q, D), inserted after the words before the subject. `None`: words only.
            frames: (B, K, 4), the reference's square in the image for each of K copies of the subject (`framing`). Used
                only by a U-Net with placed tokens; default: one copy in the middle.
            device: Device to compute on, for weights that offloading moves there; default: the weights' device.

        Returns:
            Text states (B, L, D + P), with P = `place_width`.
        """
        device = device or self.text_encoder.device
        if subject is None:
            ids = prompt_ids(self.tokenizer, prompts, self.text_length).to(device)
            return self.with_positions(self.text_encoder(ids).last_hidden_state)
        ids = prompt_ids(self.tokenizer, prompts, self.text_length - subject.shape[1]).to(device)
        states = self.text_encoder(ids, subject, insert_position(self.tokenizer))
        return self.with_positions(states, subject, frames)

    def with_positions(self, states: Tensor, subject: Tensor | None = None, frames: Tensor | None = None) -> Tensor:
        """Return text states (B, L, D) with position codes appended: (B, L, D + P). See `text_states`."""
        if subject is None or not self.place_width:
            return F.pad(states, (0, self.place_width))
        return append_codes(states, self._codes(subject, frames), insert_position(self.tokenizer))

    def several_subjects_states(
        self,
        prompts: Sequence[str],
        categories: Sequence[str],
        subjects: Sequence[Tensor],
        frames: Sequence[Tensor | None],
        *,
        device: torch.device | None = None,
    ) -> Tensor:
        """Encode prompts of several subjects, each inserted before its own category.

        Args:
            prompts: B full prompts that begin with all categories: "a dog and a cat" (`prompts.joined_categories`).
            categories: The categories of the K subjects, in this order.
            subjects: The subject tokens (B, Q, D) of each subject.
            frames: The frames of each subject, as in `text_states`.
            device: As in `text_states`.

        Returns:
            Text states (B, L, D + P).
        """
        count = sum(subject.shape[1] for subject in subjects)
        ids = prompt_ids(self.tokenizer, prompts, self.text_length - count).to(device or self.text_encoder.device)
        places = insert_positions(self.tokenizer, categories)
        states = self.text_encoder(ids, subjects, places)
        if not self.place_width:
            return states
        codes = states.new_zeros(*states.shape[:2], self.place_width)
        before = 0
        for place, subject, where in zip(places, subjects, frames, strict=True):
            codes[:, place + before : place + before + subject.shape[1]] = self._codes(subject, where)
            before += subject.shape[1]
        return append_codes(states, codes, 0)

    def _codes(self, subject: Tensor, frames: Tensor | None) -> Tensor:
        """Return the position code of each subject token (B, Q, D): (B, Q, P)."""
        tokens = subject.shape[1]
        if not tokens or not self.place_width:
            return subject.new_zeros(len(subject), tokens, self.place_width)
        if frames is None:
            frames = frames_of([default_boxes("")]).expand(len(subject), -1, -1)
        return token_codes(frames.to(subject.device), tokens, self.place_width)

    @property
    def reads_mask(self) -> bool:
        """Whether the U-Net reads a mask and the masked image's latents beside the noised latents."""
        return int(self.unet.config.in_channels) == inpainting_channels(self.latents.channels)

    def denoiser(self, text: Tensor, condition: Tensor | None = None) -> Denoiser:
        """Return a denoiser of B images, conditioned on text states (B, L, D + P).

        `condition` is `inpainting_condition`'s, for a U-Net that reads one; by default all of an image is painted.
        """
        network = unet_denoiser(self.unet, text)
        if not self.reads_mask:
            return network
        return concatenated(network, self.whole_condition if condition is None else condition)

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the model generates by default."""
        return int(self.unet.config.sample_size) * self.latents.factor

    @property
    def upscales(self) -> bool:
        """Whether the U-Net reads an enlarged small image, and how noisy it is, beside the noised latents."""
        channels = upscaling_channels(self.latents.channels)
        return int(self.unet.config.in_channels) == channels and bool(self.unet.config.num_class_embeds)

    def upscaling_denoiser(self, text: Tensor, condition: Tensor, levels: Tensor) -> Denoiser:
        """Return a denoiser of B images, conditioned on text states and on enlarged small images.

        Args:
            text: Text states (B, L, D + P); with guidance twice as many.
            condition: Latents (B, C, h, w) of the enlarged images, noised to `levels`.
            levels: Timesteps (B,) of the condition's noise.
        """
        return concatenated(unet_denoiser(self.unet, text, levels), condition)

    def target_latents(self, pixels: Tensor) -> Tensor:
        """Return latents of images (B, 3, H, W) in [0, 1], which are scaled down to the model's size."""
        side = self.image_size
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, size=(side, side), mode="area")
        return self.latents.encode(pixels).float()

    def inpainting_condition(self, pixels: Tensor, mask: Tensor) -> Tensor:
        """Return what an inpainting U-Net reads beside the latents, as Stable Diffusion's does.

        Args:
            pixels: Images (B, 3, H, W) in [0, 1].
            mask: (B, 1, H, W), above 0.5 where they are to be repainted.

        Returns:
            (B, 1 + C, h, w): the mask at the latents' size, then the latents of the images with mid-grey in its place.
        """
        hidden = (mask > 0.5).to(pixels)
        latents = self.latents.encode(pixels * (1 - hidden) + 0.5 * hidden).float()
        return torch.cat([F.interpolate(hidden.float(), size=latents.shape[-2:]), latents], dim=1)

    def whole_condition(self, latents: Tensor) -> Tensor:
        """Return the condition (1, 1 + C, h, w) under which an inpainting U-Net paints whole images."""
        height, width = (side * self.latents.factor for side in latents.shape[-2:])
        grey = latents.new_full((1, 3, height, width), 0.5)
        with torch.no_grad():
            return self.inpainting_condition(grey, torch.ones_like(grey[:, :1]))


def build_subject_encoder(config: ModelConfig) -> SubjectEncoder:
    """Build a subject encoder with random weights."""
    return SubjectEncoder(
        ImageEncoder(config.image_encoder),
        QFormer(config.qformer),
        SubjectProjection(config.qformer.width, config.projection_inner, eps=config.qformer.eps),
    )


def build_text_encoder(config: TextEncoderConfig) -> SubjectTextEncoder:
    """Build a text encoder with random weights; the last two tokens of the vocabulary are [BOS] and [EOS]."""
    return SubjectTextEncoder(
        CLIPTextConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.inner,
            projection_dim=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.positions,
            hidden_act=config.activation,
            bos_token_id=config.vocabulary - 2,
            eos_token_id=config.vocabulary - 1,
            pad_token_id=config.vocabulary - 1,
        )
    )

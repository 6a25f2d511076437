"""The members of diffusers' and transformers' objects that this package uses, as protocols for type checkers.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Tokenizer(Protocol):
    """A tokenizer of transformers: CLIP's, BERT's or that of a language model."""

    bos_token_id: Any
    eos_token_id: Any
    pad_token_id: Any
    backend_tokenizer: Any  # of the library tokenizers

    def __call__(self, text: Any, **options: Any) -> Any:
        """Return an encoding with `input_ids` and `attention_mask`."""
        ...

    def __len__(self) -> int: ...

    def tokenize(self, text: str) -> list[str]:
        """Return the word pieces of a text."""
        ...

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Return the text of token ids."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Return the id of each token."""
        ...

    def get_added_vocab(self) -> dict[str, int]:
        """Return the ids of tokens that were added to the trained vocabulary."""
        ...

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """Return the id of a token, or a list of ids."""
        ...

    def add_tokens(self, new_tokens: Any) -> int:
        """Add tokens, and return their number."""
        ...

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write the tokenizer's files to a folder."""
        ...


class Scheduler(Protocol):
    """A scheduler of diffusers' Stable Diffusion family."""

    config: Any
    timesteps: Tensor
    alphas_cumprod: Tensor
    init_noise_sigma: Any

    @property
    def step(self) -> Any:
        """The function of one step; its arguments depend on the scheduler."""
        ...

    @property
    def set_timesteps(self) -> Any:
        """The function that sets `timesteps`; its arguments depend on the scheduler."""
        ...

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """Return latents scaled for the U-Net."""
        ...

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write `scheduler_config.json` to a folder."""
        ...


class UNet(Protocol):
    """A `UNet2DConditionModel` of diffusers."""

    config: Any
    down_blocks: Sequence[nn.Module]
    mid_block: nn.Module
    up_blocks: Sequence[nn.Module]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        ...

    def __call__(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **options: Any) -> Any:
        """Return the prediction for latents (B, C, H, W) and text states (B, L, D)."""
        ...


class VAE(Protocol):
    """An `AutoencoderKL` or `AutoencoderTiny` of diffusers."""

    config: Any

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def encode(self, x: Tensor) -> Any:
        """Return an output with `latent_dist`, the posterior of images (B, 3, H, W) in [-1, 1]."""
        ...

    def decode(self, z: Tensor, **options: Any) -> Any:
        """Return an output with `sample`, images (B, 3, H, W) in about [-1, 1]."""
        ...

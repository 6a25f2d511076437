"""The diffusion prior of subjects: text states of a category to subject tokens (Ramesh et al. 2022, section 2.2)."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

PRIOR = "subject_prior"
"""The prior's folder in a model's folder."""


class SubjectPrior(ModelMixin, ConfigMixin):
    """A transformer that denoises subject tokens, conditioned on text states by cross-attention.

    unCLIP's prior generates one image embedding; this one generates the Q subject tokens that BLIP-Diffusion computes
    from a reference. Its tokens are standardised: mean 0 and variance 1 over the training subjects, token by token and
    channel by channel.

    Args:
        queries: Q, the number of subject tokens.
        width: D, the width of a subject token and of a text state.
        layers: Transformer layers.
        heads: Attention heads, a divisor of `width`.

    Example:
        >>> prior = SubjectPrior(queries=64, width=256)
        >>> prior(torch.randn(2, 64, 256), torch.tensor([10, 900]), torch.randn(2, 7, 256)).shape
        torch.Size([2, 64, 256])
    """

    mean: Tensor
    std: Tensor

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers has no types for it
    def __init__(self, queries: int, width: int, layers: int = 4, heads: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.positions = nn.Parameter(0.02 * torch.randn(1, queries, width))
        self.time_features = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, width)
        self.input = nn.Linear(width, width)
        self.transformer = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.output = nn.Linear(width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.register_buffer("mean", torch.zeros(queries, width))
        self.register_buffer("std", torch.ones(queries, width))

    def forward(self, noised: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Return the network's prediction, ε or v, depending on the scheduler's `prediction_type`.

        Args:
            noised: (B, Q, D) standardised tokens with noise.
            timesteps: (B,) or a scalar.
            text: (B, L, D) text states of the category.

        Returns:
            (B, Q, D).
        """
        timesteps = timesteps.expand(len(noised))
        time = self.time_embedding(self.time_features(timesteps).to(noised.dtype))[:, None]  # (B, 1, D)
        hidden = self.input(noised) + self.positions + time
        prediction: Tensor = self.output(self.transformer(hidden, text))
        return prediction

    def standardized(self, tokens: Tensor) -> Tensor:
        """Return subject tokens (B, Q, D) standardised by the statistics of training."""
        return (tokens - self.mean) / self.std

    def unstandardized(self, tokens: Tensor) -> Tensor:
        """Return standardised tokens (B, Q, D) as subject tokens."""
        return tokens * self.std + self.mean

    @torch.no_grad()
    def fit_statistics(self, tokens: Tensor) -> None:
        """Set mean and standard deviation to those of subject tokens (N, Q, D)."""
        self.mean.copy_(tokens.mean(dim=0))
        self.std.copy_(tokens.std(dim=0).clamp(min=1e-4))

"""Train a small language model on captions; the language stage can freeze it in place of a larger one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip_diffusion.checkpoint.language import save_language
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.errors import ConfigError
from blip_diffusion.prompts import SpecialIds, caption_words
from blip_diffusion.protocols import Tokenizer
from blip_diffusion.training.objective import Losses, Objective, ParameterGroup, StepContext


@dataclass(frozen=True)
class SentencesConfig:
    """Caption length and learning rate."""

    max_caption_tokens: int = 32  # longer captions are truncated
    lr_scale: float = 1.0  # factor of the learning rate

    def __post_init__(self) -> None:
        if self.max_caption_tokens < 2:
            raise ConfigError(f"sentences.max_caption_tokens is {self.max_caption_tokens}: use 2 or more.")


class Sentences(Objective):
    """Train a causal language model on captions alone: the mean cross-entropy of the next token, in nats.

    Args:
        language_model: A decoder-only model of transformers.
        tokenizer: Its tokenizer.
        config: The settings.
    """

    def __init__(self, language_model: Any, tokenizer: Tokenizer, config: SentencesConfig) -> None:
        super().__init__()
        self.language_model = language_model
        self.tokenizer = tokenizer
        self.config = config

    def forward(self, batch: SubjectBatch, context: StepContext) -> Losses:
        """Return the cross-entropy of the captions."""
        special = SpecialIds.of(self.language_model.config)
        words, labels = caption_words(self.tokenizer, batch["caption"], special, limit=self.config.max_caption_tokens)
        device = self.language_model.device
        words, labels = words.to(device), labels.to(device)
        output = self.language_model(input_ids=words.input_ids, attention_mask=words.attention_mask, labels=labels)
        return {"loss": output.loss}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters of the language model."""
        return [ParameterGroup("language_model", list(self.language_model.parameters()), self.config.lr_scale)]

    def export(self, folder: Path) -> None:
        """Write `language/`, without a projection."""
        save_language(self.language_model, self.tokenizer, folder / "language")

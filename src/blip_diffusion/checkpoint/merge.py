"""LoRAs and words that a model has while something else is trained on top of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers.utils import recurse_remove_peft_layers

from blip_diffusion.checkpoint.adapter_refs import EmbeddingRef, LoraRef, check_unchanged
from blip_diffusion.checkpoint.lora_file import UNREADABLE, inject_lora, read_lora
from blip_diffusion.checkpoint.textual_inversion import add_word, read_embeddings
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.nn_utils import lora_layers, mark_modified

MERGED = "merged"


def merge_adapters(model: BlipDiffusion, loras: Sequence[LoraRef], embeddings: Sequence[EmbeddingRef]) -> None:
    """Merge LoRAs into the weights of a model and add the words of embeddings, for training on top of them.

    Raises:
        CheckpointError: If a file is missing, has changed, or doesn't fit the model.
    """
    check_unchanged(loras, embeddings)
    for lora in loras:
        merge_lora(lora.path, lora.weight, model.unet, model.text_encoder)
    for embedding in embeddings:
        add_word(model.tokenizer, model.text_encoder, *read_embeddings(Path(embedding.path)))


def merge_lora(source: str | Path, weight: float, unet: Any, text_encoder: Any) -> None:
    """Add `weight` times a LoRA to the weights of networks that hold no adapters.

    Raises:
        CheckpointError: If the LoRA can't be read or is for another model.
    """
    lora = read_lora(source, {"unet": unet, "text_encoder": text_encoder})
    try:
        inject_lora(lora, unet, text_encoder, adapter_name=MERGED, low_cpu_mem_usage=False, _pipeline=None)
    except UNREADABLE as error:
        raise CheckpointError(f"The LoRA can't be loaded: {reason(error)}.") from error
    for layer in lora_layers(unet, text_encoder):
        layer.set_scale(MERGED, weight)
        layer.merge(adapter_names=[MERGED])
    for network in (unet, text_encoder):
        recurse_remove_peft_layers(network)
        vars(network).pop("peft_config", None)
        network._hf_peft_config_loaded = False
    mark_modified(unet, text_encoder)

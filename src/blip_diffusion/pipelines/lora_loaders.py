"""diffusers' public methods for LoRAs and textual inversions, each loaded completely or not at all."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin

from blip_diffusion.checkpoint.hub_files import local_file
from blip_diffusion.checkpoint.locate import check_source
from blip_diffusion.checkpoint.lora_file import UNREADABLE
from blip_diffusion.checkpoint.textual_inversion import (
    FILES,
    check_word,
    find_embeddings,
    parse_embeddings,
    read_embeddings,
)
from blip_diffusion.errors import CheckpointError, InputError, reason
from blip_diffusion.fileio import as_path
from blip_diffusion.nn_utils import mark_modified
from blip_diffusion.pipelines.adapters import AdapterManager
from blip_diffusion.pipelines.host import PipelineHost
from blip_diffusion.pipelines.locking import LIBRARY_LOCK, exclusive


class LoraLoadersMixin(StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin, PipelineHost):
    """LoRA and textual inversion methods; after each, subjects and the preset's LoRA are active as before."""

    @property
    def adapters(self) -> AdapterManager:
        """The owner of all LoRAs in the U-Net and the text encoder."""
        return AdapterManager(self.unet, self.text_encoder, pipeline=self)

    @exclusive
    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Any,
        adapter_name: str | None = None,
        hotswap: bool = False,
        low_cpu_mem_usage: bool = True,
        **options: Any,
    ) -> None:
        """Load a LoRA for the U-Net, the text encoder, or both.

        Args:
            pretrained_model_name_or_path_or_dict: A file, a folder, a hub id, or a state dict, in the naming scheme of
                PEFT, diffusers, transformers or kohya's scripts.
            adapter_name: Name of the adapter; by default one that is not in use.
            hotswap: Replace the weights of an adapter of that name in place.
            low_cpu_mem_usage: Create weights without initialising them first.
            **options: Where the file is, as in diffusers: `weight_name`, `subfolder`, `revision`, ...

        Raises:
            CheckpointError: If it cannot be read or is for another base model. Nothing is loaded then.
            InputError: If `torch.compile` wraps the U-Net or the text encoder.

        Example:
            >>> pipe.load_lora_weights("style.safetensors", adapter_name="style")
            >>> pipe.set_adapters("style", 0.7)
        """
        source = pretrained_model_name_or_path_or_dict
        self.adapters.load(source, adapter_name, hotswap=hotswap, low_cpu_mem_usage=low_cpu_mem_usage, **options)

    @classmethod
    def save_lora_weights(cls, save_directory: str | Path, *args: Any, **options: Any) -> None:
        """Write LoRA layers to a folder, as diffusers does. Raises `InputError` for an empty path."""
        super().save_lora_weights(as_path("save_directory", save_directory), *args, **options)

    @exclusive
    def set_adapters(self, *args: Any, **options: Any) -> None:
        """Choose among the user's LoRAs, as diffusers does; `set_subjects` chooses among subjects."""
        super().set_adapters(*args, **options)
        self.adapters.apply()

    @exclusive
    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """Remove user LoRAs, as diffusers does; the remaining ones are active if they were."""
        self.adapters.check_uncompiled()
        with self.adapters.keeping_user_adapters(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* was active")  # PEFT's choice of another one is overruled
            super().delete_adapters(adapter_names)

    @exclusive
    def unload_lora_weights(self) -> None:
        """Remove all user LoRAs; fused ones stay in the weights, and subjects stay loaded."""
        super().unload_lora_weights()
        self.adapters.apply()

    @exclusive
    def fuse_lora(self, *args: Any, **options: Any) -> None:
        """Merge the user's LoRAs into the weights, as diffusers does.

        Raises:
            InputError: If a preset's LoRA or a subject that changes the U-Net is active: it would be merged too.
        """
        if not self.preset.uses_cfg:
            raise InputError("LoRAs can't be fused under a preset with a LoRA: set another preset first.")
        self.adapters.set_preset_lora(None)  # one that another pipeline has set
        self.adapters.check_fusable()
        mark_modified(self.unet, self.text_encoder)
        super().fuse_lora(*args, **options)
        self.adapters.registry.base_weights.clear()  # no active subject replaces weights, and the base has changed

    @exclusive
    def unfuse_lora(self, *args: Any, **options: Any) -> None:
        """Restore the weights before `fuse_lora`, as diffusers does."""
        mark_modified(self.unet, self.text_encoder)
        super().unfuse_lora(*args, **options)

    @exclusive
    def load_textual_inversion(
        self, pretrained_model_name_or_path: Any, token: str | list[str] | None = None, *args: Any, **options: Any
    ) -> None:
        """Load embeddings of new words, as diffusers does.

        Args:
            pretrained_model_name_or_path: A file, a folder, a hub id, a state dict, a tensor (N, D), or a list of them.
            token: The word, or a list of them; by default the word in the file, or the file's name.
            *args: As in diffusers.
            **options: Where the file is, as in diffusers: `weight_name`, `subfolder`, `revision`, ...

        Raises:
            CheckpointError: If they cannot be read or have another width than the text encoder. Nothing is loaded then.
        """
        given = pretrained_model_name_or_path
        sources = list(given) if isinstance(given, list) else [given]
        tokens = list(token) if isinstance(token, list) else [token] * len(sources)
        if not sources:
            raise InputError("pretrained_model_name_or_path is an empty list: give a file, for example rex.pt.")
        if len(tokens) != len(sources):
            raise InputError(f"There are {len(tokens)} tokens for {len(sources)} textual inversions: give one each.")
        width = int(self.text_encoder.config.hidden_size)
        read = [_embeddings(source, word, width, options) for source, word in zip(sources, tokens, strict=True)]
        words, vectors = [word for word, _ in read], [source for _, source in read]
        try:
            with LIBRARY_LOCK:
                super().load_textual_inversion(vectors, words, *args, **options)
        except UNREADABLE as error:
            raise CheckpointError(f"The textual inversion can't be loaded: {reason(error)}.") from error


def _embeddings(source: Any, token: str | None, width: int, options: Mapping[str, Any]) -> tuple[str | None, Any]:
    """Return the word and the vectors (N, D) of a textual inversion."""
    if token is not None:
        check_word(token)
    if isinstance(source, str | Path):
        check_source(source, "textual inversion")
        file = local_file(source, FILES, "textual inversion", **options)
        word, vectors = read_embeddings(find_embeddings(file, options.get("subfolder"), options.get("weight_name")))
    else:
        word, vectors = parse_embeddings(source, token)
    if vectors.shape[1] != width:
        raise CheckpointError(
            f"The textual inversion is for another model: its vectors are {vectors.shape[1]} wide, and "
            f"this model's {width}."
        )
    return token or word, vectors

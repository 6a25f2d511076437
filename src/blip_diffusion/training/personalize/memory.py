"""Memory of tuning at the published shapes, and the fastest settings that fit a GPU.

    python -m blip_diffusion.training.personalize.memory            the table, computed
    python -m blip_diffusion.training.personalize.memory lora 1     one real step of it on the CPU, measured

Weights, gradients and moments are computed from the number of parameters. Activations are the sizes of the tensors that
autograd saves, from a run of the U-Net on torch's `meta` device, which has shapes but no memory.
"""

import dataclasses
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from blip_diffusion.control_characters import print_text
from blip_diffusion.errors import InputError
from blip_diffusion.model import ModelConfig, build_subject_encoder, build_text_encoder
from blip_diffusion.training.lora import TEXT_ATTENTION, add_lora
from blip_diffusion.training.objective import ParameterGroup
from blip_diffusion.training.optim import OptimConfig, adamw
from blip_diffusion.training.personalize.config import TuneConfig

GIB = 2**30
CONTEXT = 1.0
"""GiB that CUDA, its kernels and fragmentation take."""


@dataclass(frozen=True)
class Memory:
    """GPU memory by part, in GiB."""

    weights: float  # of all networks
    training: float  # gradients and moments
    activations: float  # largest sum of tensors saved for the backward pass

    @property
    def total(self) -> float:
        """The sum, including CUDA's context."""
        return self.weights + self.training + self.activations + CONTEXT


def estimate(config: TuneConfig, *, batch_size: int | None = None) -> Memory:
    """Estimate the GPU memory of fine-tuning at the published shapes in bf16."""
    unet, text_encoder, others = _published_unet(), _text_encoder(), _other_parameters()
    trainable = _trainable(unet, config) + _trainable_text(text_encoder, config)
    count = sum(parameter.numel() for parameter in trainable) + 16 * 768
    everything = [*unet.parameters(), *text_encoder.parameters()]
    frozen = sum(parameter.numel() for parameter in everything) - count + others
    graphs = (
        2 if config.num_class_images and config.method != "textual-inversion" else 1
    )  # both are kept until the backward pass
    copies = 2 * count if config.whole_network else 0  # autocast's bf16 copies of float32 weights
    moments = (2 if config.eight_bit else 8) * count
    return Memory(
        weights=(4 * count + 2 * frozen + copies) / GIB,
        training=(4 * count + moments) / GIB,
        activations=graphs * _activations(unet, config, batch_size or config.batch_size) / GIB,
    )


def fit_to_memory(config: TuneConfig, gigabytes: int) -> TuneConfig:
    """Return the fastest settings that fit a GPU. Raises `InputError` if none does.

    Slower settings are tried in this order: recomputed activations, 8-bit moments if bitsandbytes is installed, smaller
    batches.
    """
    eight_bit = (False, True) if find_spec("bitsandbytes") else (False,)
    for batch_size, eight, checkpointing in product(range(config.batch_size, 0, -1), eight_bit, (False, True)):
        tried = dataclasses.replace(
            config,
            batch_size=batch_size,
            eight_bit=eight,
            gradient_checkpointing=checkpointing,
            mixed_precision="auto" if torch.cuda.is_available() else "no",
        )
        if estimate(tried).total <= gigabytes:
            return tried
    hint = "" if len(eight_bit) > 1 else ", or pip install bitsandbytes, whose 8-bit Adam takes a quarter"
    raise InputError(f"This needs more than {gigabytes} GB of GPU memory: use --trainable lora{hint}.")


def _trainable(unet: nn.Module, config: TuneConfig) -> list[nn.Parameter]:
    """Return the trainable parameters of the U-Net, after adding a LoRA if the method trains one."""
    unet.requires_grad_(False)
    if config.whole_network:
        unet.requires_grad_(True)
    elif config.method == "dreambooth-lora" or (config.method == "few-shot" and config.trainable == "lora"):
        return add_lora(unet, config.rank)
    elif config.method == "few-shot" and config.trainable == "cross-attention":
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(".attn2.to_k." in name or ".attn2.to_v." in name)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def _trainable_text(text_encoder: nn.Module, config: TuneConfig) -> list[nn.Parameter]:
    """Return the trainable parameters of the text encoder, which only DreamBooth may train."""
    text_encoder.requires_grad_(False)
    if not config.train_text_encoder or not config.method.startswith("dreambooth"):
        return []
    if config.method == "dreambooth-lora":
        return add_lora(text_encoder, config.rank, TEXT_ATTENTION)
    return list(text_encoder.requires_grad_(True).parameters())


def _published_unet() -> Any:
    with torch.device("meta"), _default(torch.bfloat16):
        return UNet2DConditionModel(**ModelConfig().unet).train()


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype: casting new weights afterwards makes diffusers warn."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _text_encoder() -> nn.Module:
    with torch.device("meta"):
        return build_text_encoder(ModelConfig().text_encoder)


def _other_parameters() -> int:
    """Return the number of parameters of the subject encoder and the VAE, which are frozen."""
    shapes = ModelConfig()
    with torch.device("meta"):
        parts: list[nn.Module] = [build_subject_encoder(shapes), AutoencoderKL(**shapes.vae)]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def _activations(unet: Any, config: TuneConfig, batch_size: int) -> int:
    """Return the bytes saved by a forward pass in bf16; with checkpointing, plus the largest recomputed layer."""
    largest = 0
    if config.gradient_checkpointing:
        layer = unet.up_blocks[-1].attentions[-1]
        hidden = torch.zeros(batch_size, 320, 64, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
        text = _text(batch_size)
        largest = _saved_bytes(layer, lambda: layer(hidden, encoder_hidden_states=text, return_dict=False))
        unet.enable_gradient_checkpointing()
    noised = torch.zeros(batch_size, 4, 64, 64, dtype=torch.bfloat16, device="meta")
    timesteps, text = torch.zeros(batch_size, dtype=torch.long, device="meta"), _text(batch_size)
    return largest + _saved_bytes(unet, lambda: unet(noised, timesteps, encoder_hidden_states=text).sample)


def _text(batch_size: int) -> Tensor:
    return torch.zeros(batch_size, 77, 768, dtype=torch.bfloat16, device="meta", requires_grad=True)


def _saved_bytes(module: nn.Module, forward: Any) -> int:
    """Return the bytes that autograd saves for the backward pass, without weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    saved: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage  # a reference, so that its address isn't reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in saved.values())


# ---------------------------------------------------------------------------------------------------------- the command


def table() -> str:
    """Return the memory of each way of fine-tuning, as Markdown."""
    lines = ["| what moves | batch | checkpointing | Adam | weights | training | activations | total, GiB |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for train in ("embedding", "lora", "cross-attention", "unet"):
        for checkpointing, eight in ((False, False), (True, False), (True, True)):
            if eight and train != "unet":
                continue
            for batch_size in (3, 1):
                config = TuneConfig(
                    trainable=train, gradient_checkpointing=checkpointing, eight_bit=eight, batch_size=batch_size
                )
                memory = estimate(config)
                words = (train, batch_size, "yes" if checkpointing else "no", "8 bit" if eight else "32 bit")
                sizes = (memory.weights, memory.training, memory.activations, memory.total)
                lines.append("| " + " | ".join([*map(str, words), *(f"{size:.1f}" for size in sizes)]) + " |")
    return "\n".join(lines)


def measure(config: TuneConfig) -> tuple[float, float]:
    """Return the GiB of a real step on the CPU with random weights, bf16 and checkpointing, and the computed GiB.

    Both are of U-Net, embedding and optimizer only: a step doesn't use the other parts.
    """
    computed = estimate(config)
    before = _resident()
    with _default(torch.bfloat16):
        unet = UNet2DConditionModel(**ModelConfig().unet).train()
    embedding = nn.Parameter(torch.zeros(1, 77, 768))
    trainable = [embedding, *_trainable(unet, config)]
    for parameter in trainable:
        parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = adamw([ParameterGroup("trainable", trainable, 1.0)], OptimConfig())
    noised = torch.randn(config.batch_size, 4, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text = embedding.expand(config.batch_size, -1, -1)
        prediction = unet(noised, torch.zeros(config.batch_size, dtype=torch.long), encoder_hidden_states=text).sample
        loss = prediction.float().square().mean()
    loss.backward()
    optimizer.step()
    rest = 2 * _other_parameters() / GIB
    return _resident() - before, computed.total - CONTEXT - rest


def _resident() -> float:
    """Return the peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    """Print the table, or measure."""
    if len(sys.argv) == 1:
        print_text(table(), lines=True)
        return
    config = TuneConfig(trainable=sys.argv[1], batch_size=int(sys.argv[2]), gradient_checkpointing=True)  # type: ignore[arg-type]
    measured, computed = measure(config)
    print_text(
        f"{config.trainable}, batch {config.batch_size}: measured {measured:.2f} GiB, computed {computed:.2f} GiB"
    )


if __name__ == "__main__":
    main()

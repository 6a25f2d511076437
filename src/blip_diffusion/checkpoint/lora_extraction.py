"""Convert a whole tuned U-Net, as LAVIS saves it, to a subject file: the embedding, and a LoRA of the changes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip_diffusion.checkpoint.lavis import read_tuned
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.lora import ATTENTION
from blip_diffusion.checkpoint.model_folder import assemble, read_parts
from blip_diffusion.checkpoint.subject_file import (
    Subject,
    check_category,
    check_name,
    check_place,
    fingerprint,
    write_subject,
)
from blip_diffusion.checkpoint.weights import State
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.fileio import check_result

MAX_RANK = 1280
"""Width of the widest attention of Stable Diffusion 1.5: a LoRA of that rank is exact."""


def convert_tuned(source: Path, base: str, out: Path, *, name: str, category: str, rank: int = 8) -> float:
    """Convert LAVIS' tuned checkpoint (10 GB) to a subject file for the model that it was tuned from.

    Returns the share of the U-Net's change that the LoRA keeps, of the squared norm. The rest, and changes outside of
    attention, are lost. Rank 0 keeps only the embedding.
    """
    check_name(name)
    check_category(category)
    if not 0 <= rank <= MAX_RANK:
        raise InputError(f"--rank is {rank}: use a number from 0 to {MAX_RANK}.")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors, for example {name}.safetensors.")
    check_place(out)
    check_result(out)
    folder = find_model(base)
    model = assemble(read_parts(folder), folder)
    before, base_fingerprint = model.unet, fingerprint(model.unet, model.text_encoder)
    tuned = read_tuned(source, model)
    if tuned.subject is None:
        raise CheckpointError(f"{source} holds no tuned subject.")
    lora, kept = low_rank(before, tuned.model.unet, rank)
    metadata = {"model": base, "method": "LAVIS few-shot", "kept": round(kept, 4)}
    subject = Subject(
        name, category, tuned.subject, base_fingerprint, lora=lora, alpha=float(rank if lora else 0), metadata=metadata
    )
    write_subject(subject, out)
    return kept


@torch.no_grad()
def low_rank(before: nn.Module, after: nn.Module, rank: int) -> tuple[State, float]:
    """Return the best low-rank LoRA for the change of every attention projection, and its explained share.

    The best in squared norm is the truncated singular value decomposition (Eckart & Young 1936).
    """
    lora: State = {}
    total = kept = 0.0
    old: dict[str, Any] = dict(before.named_parameters())
    for name, parameter in after.named_parameters():
        change = parameter.float() - old[name].float()
        total += float(change.square().sum())
        layer = name.removesuffix(".weight")
        if rank and layer.endswith(tuple(f".{projection}" for projection in ATTENTION)) and name.endswith(".weight"):
            down, up, squares = _truncated(change, rank)
            lora |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
            kept += squares
    return lora, kept / total if total else 1.0


def _truncated(change: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Return factors (R, in) and (out, R) of a matrix (out, in), zero-padded to rank R, and their squared norm."""
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    roots = values[:rank].sqrt()
    down, up = roots[:, None] * right[:rank], left[:, :rank] * roots
    missing = rank - len(roots)
    down, up = nn.functional.pad(down, (0, 0, 0, missing)), nn.functional.pad(up, (0, missing))
    return down.contiguous(), up.contiguous(), float(values[:rank].square().sum())

"""LAVIS' files: a folder or `.tar.gz` of plain state dicts, and the checkpoints of its few-shot tuning.

blip_model/blip_weight.pt           image encoder, Q-Former, and the heads of stage 1
proj_layer/proj_weight.pt           projection
text_encoder/ unet/ vae/            as in Stable Diffusion 1.5, without configurations
ctx_embeddings_cache/               a tuned subject, if there is one

Shapes, tokenizers and the scheduler are not part of it: they are the published ones, or those of a `base` model.
"""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import PNDMScheduler
from torch import Tensor

from blip_diffusion.checkpoint.components import build_diffusers
from blip_diffusion.checkpoint.key_maps import (
    LAVIS_HEADS,
    LAVIS_TIED,
    UNREAD,
    lavis_name,
    modern_vae_name,
    old_vae_name,
    subject_encoder_from_published,
    subject_encoder_to_published,
)
from blip_diffusion.checkpoint.locate import ASSETS
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer
from blip_diffusion.checkpoint.weights import State, contiguous, load_into, meta_init, read_file
from blip_diffusion.errors import CheckpointError, reason
from blip_diffusion.fileio import BoundedTarInfo
from blip_diffusion.model import (
    BlipDiffusion,
    ModelConfig,
    SubjectEncoder,
    build_subject_encoder,
    build_text_encoder,
)
from blip_diffusion.pickles import read_pickle

BLIP, PROJECTION, TEXT = "blip_model/blip_weight.pt", "proj_layer/proj_weight.pt", "text_encoder/pytorch_model.bin"
UNET, VAE = "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin"
CACHE = "ctx_embeddings_cache/ctx_embeddings_cache.pt"
FILES = (BLIP, PROJECTION, TEXT, UNET, VAE, CACHE)
MAX_MEMBERS = 1000
LARGEST = 16 * 2**30  # bytes of one file of an archive: four times the largest of the published ones


@dataclass
class LavisCheckpoint:
    """The contents of LAVIS' files."""

    model: BlipDiffusion
    heads: State = field(default_factory=dict)  # of stage 1, by this library's names
    subject: Tensor | None = None  # (1, Q, D): a tuned subject
    controlnet: Any = None  # only from this library's folders
    consistency_lora: Path | None = None  # only from this library's folders


def is_original(folder: Path) -> bool:
    """Return whether a folder has LAVIS' layout."""
    return (folder / BLIP).is_file()


def read_lavis(folder: Path, *, base: BlipDiffusion | None = None) -> LavisCheckpoint:
    """Read a folder of LAVIS' files. Raises `CheckpointError` for missing, unexpected or misshapen weights."""
    missing = [name for name in FILES if name != CACHE and not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder} is not LAVIS' archive: {', '.join(missing)} missing.")
    blip = {name: tensor for name, tensor in read_file(folder / BLIP).items() if not UNREAD.search(name)}
    heads = _heads(blip)
    published = ModelConfig()
    with meta_init():
        encoder = build_subject_encoder(published) if base is None else _like(base.subject_encoder)
        text = (
            build_text_encoder(published.text_encoder)
            if base is None
            else type(base.text_encoder)(base.text_encoder.config)
        )
    load_into(encoder, _subject_state(blip, read_file(folder / PROJECTION), encoder), where="the Q-Former")
    words = {n.removeprefix("text_model."): t for n, t in read_file(folder / TEXT).items() if not UNREAD.search(n)}
    load_into(text, words, where="the text encoder")
    unet = build_diffusers("unet", published.unet if base is None else base.unet.config, read_file(folder / UNET))
    images = {modern_vae_name(name): tensor for name, tensor in read_file(folder / VAE).items()}
    vae = build_diffusers("vae", published.vae if base is None else base.vae.config, images)
    model = BlipDiffusion(
        encoder,
        text,
        unet,
        vae,
        tokenizer=clip_tokenizer() if base is None else base.tokenizer,
        qformer_tokenizer=bert_tokenizer() if base is None else base.qformer_tokenizer,
        scheduler=published_scheduler() if base is None else base.scheduler,
        reference=published.reference if base is None else base.reference,
        inference=None if base is None else base.inference,
    )
    cache = folder / CACHE
    return LavisCheckpoint(model, heads, _subject(read_pickle(cache)) if cache.is_file() else None)


def read_tuned(path: Path, base: BlipDiffusion) -> LavisCheckpoint:
    """Read `checkpoint_40.pth` of LAVIS' few-shot tuning: the base with another U-Net, and the subject."""
    state = read_file(path)
    unet = {name.removeprefix("unet."): tensor for name, tensor in state.items() if name.startswith("unet.")}
    if not unet or "ctx_embeddings_cache" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of LAVIS' tuning: it lacks a U-Net or ctx_embeddings_cache.")
    base.unet = build_diffusers("unet", base.unet.config, unet)
    return LavisCheckpoint(base, subject=_subject(state["ctx_embeddings_cache"]))


def write_lavis(original: LavisCheckpoint, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model as LAVIS' files, weights in `dtype` if one is given.

    Raises:
        CheckpointError: If the model has parts that LAVIS doesn't have.
    """
    model = original.model
    if model.subject_encoder.image_encoder.config.tower != "clip":
        raise CheckpointError("LAVIS supports only CLIP's image encoder: this model has another.")
    if original.controlnet is not None:
        raise CheckpointError("LAVIS' layout can't hold a ControlNet: convert a copy of the model without controlnet/.")
    published = subject_encoder_to_published(model.subject_encoder.state_dict())
    blip = {lavis_name(name): _as_lavis(name, tensor) for name, tensor in published.items() if "proj_layer" not in name}
    blip |= {LAVIS_HEADS[name]: tensor for name, tensor in original.heads.items() if name in LAVIS_HEADS}
    blip |= {twin: blip[name] for twin, name in LAVIS_TIED.items() if "Qformer.cls.predictions.bias" in blip}
    states: dict[str, Any] = {
        BLIP: blip,
        PROJECTION: {n.removeprefix("proj_layer."): t for n, t in published.items() if n.startswith("proj_layer.")},
        TEXT: {f"text_model.{name}": tensor for name, tensor in model.text_encoder.state_dict().items()},
        UNET: model.unet.state_dict(),
        VAE: {old_vae_name(name): tensor for name, tensor in model.vae.state_dict().items()},
    }
    if original.subject is not None:
        states[CACHE] = original.subject
    for name, state in states.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(_owned(state, dtype), folder / name)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the expected files of LAVIS' archive. Raises `CheckpointError` for a suspicious archive."""
    try:
        with tarfile.open(archive, tarinfo=BoundedTarInfo) as files:
            for number, member in enumerate(files, start=1):
                _check_member(member, archive, number)
                name = "/".join(Path(member.name).parts[-2:])
                source = files.extractfile(member) if member.isfile() and name in FILES else None
                if source is not None:
                    _write(source, folder / name)
            while files.fileobj is not None and files.fileobj.read(2**24):
                pass  # the checksum is at the end
    except CheckpointError:
        raise
    except Exception as error:  # for damaged files, tarfile raises the errors of each compression
        raise CheckpointError(
            f"{archive} is not an archive that can be read ({reason(error)}): fetch it again."
        ) from error
    return folder


def _check_member(member: tarfile.TarInfo, archive: Path, number: int) -> None:
    path = Path(member.name)
    if number > MAX_MEMBERS:
        raise CheckpointError(f"{archive} holds more than {MAX_MEMBERS} files: it is refused.")
    if path.is_absolute() or ".." in path.parts or member.issparse() or not (member.isfile() or member.isdir()):
        raise CheckpointError(
            f"{archive} holds {member.name!r}, which an archive of weights doesn't need: it is refused."
        )
    if member.size > LARGEST:
        raise CheckpointError(f"{archive} holds {member.name!r} of {member.size / 2**30:.0f} GiB: it is refused.")


def _write(source: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        while chunk := source.read(2**24):
            out.write(chunk)


def _heads(blip: State) -> State:
    """Take the heads of stage 1 out of `blip`; tied tensors must be equal."""
    for twin, name in LAVIS_TIED.items():
        if twin in blip and name in blip and not torch.equal(blip.pop(twin), blip[name]):
            raise CheckpointError(f"{twin} is not tied to {name}: this is not LAVIS' model.")
    return {ours: blip.pop(theirs) for ours, theirs in LAVIS_HEADS.items() if theirs in blip}


def _subject_state(blip: State, projection: State, encoder: SubjectEncoder) -> State:
    target = encoder.state_dict()
    by_lavis = {lavis_name(name): name for name in subject_encoder_to_published(target) if "proj_layer" not in name}
    published = {by_lavis.get(name, name): tensor for name, tensor in blip.items()}
    published |= {f"proj_layer.{name}": tensor for name, tensor in projection.items()}
    return subject_encoder_from_published(published, target)


def _as_lavis(published: str, tensor: Tensor) -> Tensor:
    if published == "visual_encoder.embeddings.class_embedding":
        return tensor.reshape(-1)
    return tensor[0] if published == "visual_encoder.embeddings.position_embedding" else tensor


def _like(encoder: SubjectEncoder) -> SubjectEncoder:
    shapes = ModelConfig(
        image_encoder=encoder.image_encoder.config,
        qformer=encoder.qformer.config,
        projection_inner=encoder.projection.up.out_features,
    )
    return build_subject_encoder(shapes)


def _subject(tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.ndim != 3 or len(tensor) != 1:
        raise CheckpointError("The tuned subject of LAVIS must be one tensor (1, Q, D).")
    return tensor.detach().float()


def _owned(state: Any, dtype: torch.dtype | None) -> Any:
    """Copy tensors, since a view of a larger tensor would be saved with all its memory; weights in `dtype`."""
    if isinstance(state, Mapping):
        return {name: tensor.detach().clone() for name, tensor in contiguous(state, dtype).items()}
    return state.detach().clone()


def clip_tokenizer() -> Any:
    """Return CLIP's tokenizer (Radford et al. 2021), from the merges that ship with the package."""
    from transformers import CLIPTokenizer

    lines = (ASSETS / "clip" / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split()) for line in lines]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(hidden))]
    words = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *map("".join, merges),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges, model_max_length=77)


def published_scheduler() -> PNDMScheduler:
    """Return the published scheduler: Stable Diffusion's noise levels, PLMS steps, no offset."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
    )

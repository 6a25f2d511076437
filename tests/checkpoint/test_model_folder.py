"""Model folders: saving, loading, settings and single components."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ControlNetModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from blip_diffusion.checkpoint.components import load_heads, load_subject_encoder, save_heads, save_subject_encoder
from blip_diffusion.checkpoint.model_folder import Parts, assemble, read_parts
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.checkpoint.tokenizers import bert_tokenizer
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.model import BlipDiffusion, InferenceConfig, SubjectEncoder
from blip_diffusion.modules.heads import MatchingHead, ReconstructionHead
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

from .folders import WEIGHTS, edit_json


def sample_images(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("on the beach", dog, "dog", generator=generator, output_type="pt").images


@pytest.mark.parametrize("kind", ["lora", "weights"])
def test_saved_weights_exclude_subjects_and_loras(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, kind: str) -> None:
    """Subjects and LoRAs stay active in the pipeline, but are not saved."""
    plain = {name: tensor.clone() for name, tensor in fresh_pipe.model.state_dict().items()}
    name, weight = next((n, p) for n, p in fresh_pipe.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    more: dict[str, Any] = {"weights": {name: weight.detach() + 1}}
    if kind == "lora":
        halves = {"A": torch.ones(2, weight.shape[1]), "B": torch.ones(weight.shape[0], 2)}
        layer = name.removesuffix(".weight")
        more = {"lora": {f"{layer}.lora_{half}.weight": tensor for half, tensor in halves.items()}, "alpha": 2.0}
    base = fingerprint(fresh_pipe.unet, fresh_pipe.text_encoder)
    fresh_pipe.load_subject(Subject("rex", "dog", torch.ones(1, 4, 32), base, **more))
    fresh_pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "words")
    before = {name: tensor.clone() for name, tensor in fresh_pipe.model.state_dict().items()}
    fresh_pipe.save_pretrained(tmp_path / "model")
    again = BlipDiffusionPipeline.from_pretrained(tmp_path / "model").model.state_dict()
    assert again.keys() == plain.keys() and all(torch.equal(again[name], plain[name]) for name in plain)
    after = fresh_pipe.model.state_dict()
    assert fresh_pipe.active_subjects == {"rex": 1.0} and all(torch.equal(after[name], before[name]) for name in before)


def test_saving_several_controlnets_is_refused(model: BlipDiffusion, tmp_path: Path) -> None:
    nets = [ControlNetModel.from_unet(model.unet) for _ in range(2)]
    with pytest.raises(InputError, match="holds one ControlNet, not 2: save each by itself"):
        BlipDiffusionPipeline.from_model(model, controlnet=nets).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_saved_pipeline_round_trips_exactly(pipe: BlipDiffusionPipeline, tmp_path: Path, dog: Image.Image) -> None:
    pipe.save_pretrained(tmp_path / "again")
    again = BlipDiffusionPipeline.from_pretrained(tmp_path / "again")
    before, after = pipe.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(sample_images(pipe, dog), sample_images(again, dog))
    again.save_pretrained(tmp_path / "third")
    for path in sorted((tmp_path / "again").rglob("*")):
        if path.is_file() and path.name != "tokenizer.json":  # a used tokenizer remembers how it padded last
            assert path.read_bytes() == (tmp_path / "third" / path.relative_to(tmp_path / "again")).read_bytes(), path


def test_file_modes_follow_the_umask(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode}


def test_inference_settings_are_saved(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert read_parts(tmp_path).inference == InferenceConfig(1, 3, 3.0, 0.6)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "BlipDiffusionPipeline" and index["ctx_begin_pos"] == 2
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]


@pytest.mark.parametrize("kind", KarrasDiffusionSchedulers, ids=lambda kind: kind.name)
def test_each_scheduler_is_saved_and_read(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, kind: Any) -> None:
    """Some have settings that diffusers writes as -Infinity, which is no JSON."""
    if kind.name in ("DPMSolverSDEScheduler", "EDMEulerScheduler"):  # torchsde is missing; noise levels of its own
        pytest.skip("it is refused")
    scheduler = getattr(diffusers, kind.name).from_config(fresh_pipe.scheduler.config, skip_prk_steps=True)
    fresh_pipe.scheduler = scheduler
    fresh_pipe.save_pretrained(tmp_path)
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path).scheduler
    assert type(loaded) is type(scheduler)
    for name, value in scheduler.config.items():
        assert name.startswith("_") or loaded.config[name] == value


def test_missing_settings_default_to_the_published_ones(model_folder: Path) -> None:
    index = json.loads((model_folder / "model_index.json").read_text())
    ours = ("prompt_reps", "num_inference_steps", "guidance_scale", "guidance_rescale", "noise_scale")
    (model_folder / "model_index.json").write_text(
        json.dumps({name: index[name] for name in index if name not in ours})
    )
    parts = read_parts(model_folder)
    assert parts.inference is None
    assert assemble(parts, model_folder).inference == InferenceConfig(20, 50, 7.5, 0.0, 1.0)


def test_half_precision_folder_round_trips(pipe: BlipDiffusionPipeline, tmp_path: Path, dog: Image.Image) -> None:
    pipe.save_pretrained(tmp_path, torch_dtype=torch.float16)
    for name in WEIGHTS.values():
        assert {tensor.dtype for tensor in load_file(tmp_path / name).values()} == {torch.float16}
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}  # saving changed nothing
    assert (sample_images(pipe, dog) - sample_images(loaded, dog)).abs().mean() < 0.01


def test_subject_encoder_round_trips(clip_encoder: SubjectEncoder, tmp_path: Path) -> None:
    save_subject_encoder(clip_encoder, tmp_path)
    loaded = load_subject_encoder(tmp_path)
    assert loaded.image_encoder.config == clip_encoder.image_encoder.config
    assert loaded.qformer.config == clip_encoder.qformer.config
    before, after = clip_encoder.state_dict(), loaded.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.training


def test_heads_round_trip(tmp_path: Path) -> None:
    saved, fresh = ReconstructionHead(16, size=16), ReconstructionHead(16, size=16)
    save_heads({"reconstruction": saved}, tmp_path)
    assert load_heads({"reconstruction": fresh, "matching": MatchingHead(16)}, tmp_path) == ["reconstruction"]
    assert torch.equal(saved.places, fresh.places)
    with pytest.raises(CheckpointError, match="don't fit the reconstruction head"):
        load_heads({"reconstruction": ReconstructionHead(8, size=16, heads=2)}, tmp_path)
    assert load_heads({"reconstruction": fresh}, tmp_path / "nowhere") == []


def test_single_component_is_read(model_folder: Path) -> None:
    for path in model_folder.iterdir():
        if path.name != "vae":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts = read_parts(model_folder)
    assert parts == replace(Parts(), vae=parts.vae) and not parts.vae.training


@pytest.mark.parametrize("name", ["mini", "nobody/nothing"])
def test_unknown_component_keyword_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"text_encoder can't be chosen"):
        BlipDiffusionPipeline.from_pretrained(name, text_encoder=None)


def test_mean_and_std_of_the_index_have_priority(model_folder: Path) -> None:
    edit_json(model_folder / "model_index.json", mean=[0.1, 0.2, 0.3], std=None)
    processor = model_folder / "image_processor" / "preprocessor_config.json"
    edit_json(processor, image_std=[0.4, 0.5, 0.6], size={"shortest_edge": 48})
    reference = read_parts(model_folder).reference
    assert reference is not None
    assert (reference.size, reference.mean, reference.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_qformer_vocabulary_can_be_replaced(model_folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]))
    tokenizer = read_parts(model_folder, qformer_tokenizer=words).qformer_tokenizer
    assert tokenizer("dog").input_ids == [2, 5, 3]
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("[DEC]", 6)
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "dog"]))
    tokenizer = read_parts(model_folder, qformer_tokenizer=words).qformer_tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_token_id, len(tokenizer)) == ("[DEC]", 5, 7)
    with pytest.raises(CheckpointError, match="no WordPiece vocabulary"):
        read_parts(model_folder, qformer_tokenizer=tmp_path / "nowhere")


def test_assemble_needs_every_component() -> None:
    with pytest.raises(CheckpointError, match=r"subject_encoder, reference, .*scheduler missing"):
        assemble(Parts(), Path("here"))


def test_bundled_vocabulary_is_that_of_bert() -> None:
    tokenizer = bert_tokenizer()
    assert len(tokenizer) == 30523
    assert tokenizer("dog").input_ids == [101, 3899, 102]  # bert-base-uncased's own numbers
    assert tokenizer.bos_token_id == 30522  # [DEC]

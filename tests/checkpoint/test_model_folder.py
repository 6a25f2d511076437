import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.checkpoint.components import (
    bert_tokenizer,
    load_heads,
    load_subject_encoder,
    load_text_encoder,
    save_heads,
    save_subject_encoder,
)
from blip_diffusion.checkpoint.key_maps import (
    published_name,
    subject_encoder_from_published,
    subject_encoder_to_published,
)
from blip_diffusion.checkpoint.locate import find_model
from blip_diffusion.checkpoint.model_folder import Parts, assemble, read_parts
from blip_diffusion.checkpoint.subject_file import Subject, fingerprint
from blip_diffusion.checkpoint.weights import read_file
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.model import BlipDiffusion, InferenceConfig, ModelConfig, SubjectEncoder, build_subject_encoder
from blip_diffusion.modules.heads import MatchingHead, ReconstructionHead
from blip_diffusion.modules.image_encoder import ImageEncoderConfig
from blip_diffusion.modules.qformer import QFormerConfig
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

CLIP_SHAPES = ModelConfig(
    image_encoder=ImageEncoderConfig(image_size=28, width=24, layers=2, heads=2, inner=96, patch=14),
    qformer=QFormerConfig(
        width=16, layers=2, heads=2, inner=32, vocabulary=64, positions=32, vision_width=24, queries=4
    ),
    projection_inner=64,
)
WEIGHTS = {
    "qformer": "qformer/model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}
State = dict[str, Tensor]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, one's own to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def clip_encoder() -> SubjectEncoder:
    torch.manual_seed(0)
    return build_subject_encoder(CLIP_SHAPES).eval()


def draw(pipe: BlipDiffusionPipeline, dog: Image.Image) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe("on the beach", dog, "dog", generator=generator, output_type="pt").images


def edit(path: Path, change: Callable[[State], Any]) -> None:
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    save_file(state, path)


def edit_json(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", ["lora", "weights"])
def test_it_is_saved_without_what_lies_beside_it(own: BlipDiffusionPipeline, tmp_path: Path, kind: str) -> None:
    """Subjects and LoRAs, of the U-Net and of the text encoder; the pipeline goes on drawing them."""
    plain = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    name, weight = next((n, p) for n, p in own.unet.named_parameters() if n.endswith("attn2.to_k.weight"))
    more: dict[str, Any] = {"weights": {name: weight.detach() + 1}}
    if kind == "lora":
        halves = {"A": torch.ones(2, weight.shape[1]), "B": torch.ones(weight.shape[0], 2)}
        layer = name.removesuffix(".weight")
        more = {"lora": {f"{layer}.lora_{half}.weight": tensor for half, tensor in halves.items()}, "alpha": 2.0}
    base = fingerprint(own.unet, own.text_encoder)
    own.load_subject(Subject("rex", "dog", torch.ones(1, 4, 32), base, **more))
    own.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "words")
    before = {name: tensor.clone() for name, tensor in own.model.state_dict().items()}
    own.save_pretrained(tmp_path / "model")
    again = BlipDiffusionPipeline.from_pretrained(tmp_path / "model").model.state_dict()
    assert again.keys() == plain.keys() and all(torch.equal(again[name], plain[name]) for name in plain)
    after = own.model.state_dict()
    assert own.active_subjects == {"rex": 1.0} and all(torch.equal(after[name], before[name]) for name in before)


def test_several_controlnets_are_refused_before_anything_is_written(model: BlipDiffusion, tmp_path: Path) -> None:
    nets = [ControlNetModel.from_unet(model.unet) for _ in range(2)]
    with pytest.raises(InputError, match="holds one ControlNet, not 2: save each by itself"):
        BlipDiffusionPipeline.from_model(model, controlnet=nets).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_saved_pipeline_is_the_same_bit_for_bit(
    pipe: BlipDiffusionPipeline, tmp_path: Path, dog: Image.Image
) -> None:
    pipe.save_pretrained(tmp_path / "again")
    again = BlipDiffusionPipeline.from_pretrained(tmp_path / "again")
    before, after = pipe.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(draw(pipe, dog), draw(again, dog))
    again.save_pretrained(tmp_path / "third")
    for path in sorted((tmp_path / "again").rglob("*")):
        if path.is_file() and path.name != "tokenizer.json":  # a used tokenizer remembers how it padded last
            assert path.read_bytes() == (tmp_path / "third" / path.relative_to(tmp_path / "again")).read_bytes(), path


def test_who_may_read_what_is_saved_is_for_the_umask_to_say(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    plain = tmp_path / "plain"
    plain.touch()
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode}


def test_settings_travel_with_the_folder(pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    assert read_parts(tmp_path).inference == InferenceConfig(1, 3, 3.0, 0.6)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "BlipDiffusionPipeline" and index["ctx_begin_pos"] == 2
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]


def test_a_folder_without_settings_has_the_published_ones(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    ours = ("prompt_reps", "num_inference_steps", "guidance_scale", "guidance_rescale", "noise_scale")
    (folder / "model_index.json").write_text(json.dumps({name: index[name] for name in index if name not in ours}))
    parts = read_parts(folder)
    assert parts.inference is None
    assert assemble(parts, folder).inference == InferenceConfig(20, 50, 7.5, 0.0, 1.0)


def test_a_folder_of_half_the_size(pipe: BlipDiffusionPipeline, tmp_path: Path, dog: Image.Image) -> None:
    pipe.save_pretrained(tmp_path, torch_dtype=torch.float16)
    for name in WEIGHTS.values():
        assert {tensor.dtype for tensor in load_file(tmp_path / name).values()} == {torch.float16}
    loaded = BlipDiffusionPipeline.from_pretrained(tmp_path)
    assert {tensor.dtype for tensor in loaded.model.state_dict().values()} == {torch.float32}
    assert {parameter.dtype for parameter in pipe.model.parameters()} == {torch.float32}  # saving changed nothing
    assert (draw(pipe, dog) - draw(loaded, dog)).abs().mean() < 0.01


def test_the_subject_encoder_alone(clip_encoder: SubjectEncoder, tmp_path: Path) -> None:
    save_subject_encoder(clip_encoder, tmp_path)
    loaded = load_subject_encoder(tmp_path)
    assert loaded.image_encoder.config == clip_encoder.image_encoder.config
    assert loaded.qformer.config == clip_encoder.qformer.config
    before, after = clip_encoder.state_dict(), loaded.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not loaded.training


def test_heads(tmp_path: Path) -> None:
    saved, fresh = ReconstructionHead(16, size=16), ReconstructionHead(16, size=16)
    save_heads({"reconstruction": saved}, tmp_path)
    assert load_heads({"reconstruction": fresh, "matching": MatchingHead(16)}, tmp_path) == ["reconstruction"]
    assert torch.equal(saved.places, fresh.places)
    with pytest.raises(CheckpointError, match="don't fit the reconstruction head"):
        load_heads({"reconstruction": ReconstructionHead(8, size=16, heads=2)}, tmp_path)
    assert load_heads({"reconstruction": fresh}, tmp_path / "nowhere") == []


# ------------------------------------------------------------------------------------------------------------ key maps


def test_names_are_mapped_both_ways(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    published = subject_encoder_to_published(state)
    back = subject_encoder_from_published(published, state)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_published_names_are_the_published_ones(clip_encoder: SubjectEncoder) -> None:
    """Of `golden/`, whose peer has the same shapes but for its table of positions."""
    golden = load_file(Path(__file__).parents[1] / "parity/golden/pipe/qformer/model.safetensors")
    ours = subject_encoder_to_published(clip_encoder.state_dict())
    unread = {name for name in golden if name.endswith("position_ids")}
    assert ours.keys() == golden.keys() - unread
    differing = [name for name in ours if ours[name].shape != golden[name].shape]
    assert differing == ["embeddings.position_embeddings.weight"]


def test_names_of_both_feed_forwards() -> None:
    names = {
        "qformer.query_tokens": "query_tokens",
        "qformer.layers.3.self_attention.query.weight": "encoder.layer.3.attention.attention.query.weight",
        "qformer.layers.3.cross_attention.out.bias": "encoder.layer.3.crossattention.output.dense.bias",
        "qformer.layers.3.query_feed_forward.up.weight": "encoder.layer.3.intermediate_query.dense.weight",
        "qformer.layers.3.word_feed_forward.norm.bias": "encoder.layer.3.output.LayerNorm.bias",
        "projection.up.weight": "proj_layer.dense1.weight",
        "image_encoder.norm.weight": "visual_encoder.post_layernorm.weight",
    }
    assert {ours: published_name(ours) for ours in names} == names


def test_the_text_encoder_with_and_without_its_prefix(folder: Path) -> None:
    path = folder / WEIGHTS["text_encoder"]
    state = load_file(path)
    assert all(name.startswith("text_model.") for name in state)
    with_prefix = load_text_encoder(folder / "text_encoder").state_dict()
    plain = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    save_file(plain | {"embeddings.position_ids": torch.arange(32)}, path)
    without = load_text_encoder(folder / "text_encoder").state_dict()
    assert all(torch.equal(with_prefix[name], without[name]) for name in with_prefix)


# ------------------------------------------------------------------------------------------------- what does not fit


@pytest.mark.parametrize("part", WEIGHTS)
def test_a_missing_tensor_is_named(folder: Path, part: str) -> None:
    name = next(iter(load_file(folder / WEIGHTS[part])))
    edit(folder / WEIGHTS[part], lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match=r"1 missing \(\S+\)"):
        read_parts(folder)


@pytest.mark.parametrize("part", WEIGHTS)
def test_an_unexpected_tensor_is_named(folder: Path, part: str) -> None:
    edit(folder / WEIGHTS[part], lambda state: state.update(stranger=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"1 unexpected \(stranger\)"):
        read_parts(folder)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("qformer", "proj_layer.dense1.weight"),
        ("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("unet", "conv_in.weight"),
        ("vae", "decoder.conv_in.weight"),
    ],
)
def test_a_transposed_tensor_is_of_another_shape(folder: Path, part: str, name: str) -> None:
    """As many numbers in another shape are not taken for the right ones."""
    edit(folder / WEIGHTS[part], lambda state: state.update({name: state[name].transpose(0, 1).contiguous()}))
    with pytest.raises(CheckpointError, match=r"shape"):
        read_parts(folder)


def test_fused_attention_of_another_width(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    published = subject_encoder_to_published(state)
    name = "visual_encoder.encoder.layers.0.self_attn.qkv.weight"
    for rows in (71, 2, 96):
        with pytest.raises(CheckpointError, match="3 of another shape"):
            subject_encoder_from_published(published | {name: torch.zeros(rows, 24)}, state)


def test_many_names_are_cut_short(clip_encoder: SubjectEncoder) -> None:
    state = clip_encoder.state_dict()
    with pytest.raises(CheckpointError, match=rf"{len(state)} missing \(.*, …\)\.$"):
        subject_encoder_from_published({}, state)


@pytest.mark.parametrize("part", WEIGHTS)
def test_whole_numbers_are_no_weights(folder: Path, part: str) -> None:
    name = next(name for name, tensor in load_file(folder / WEIGHTS[part]).items() if tensor.is_floating_point())
    edit(folder / WEIGHTS[part], lambda state: state.update({name: state[name].to(torch.int8)}))
    with pytest.raises(CheckpointError, match=r"\d not of floats \(\S+ is int8"):
        read_parts(folder)


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ({"weight_map": {"a": ["b"]}}, "has no weight_map"),
        ({"weight_map": {"a": 1, "b": "model.safetensors"}}, "has no weight_map"),
        ({"weight_map": {"a": "../unet/model.safetensors"}}, "which is not in its folder"),
    ],
)
def test_an_index_that_makes_no_sense(folder: Path, index: dict[str, Any], sentence: str) -> None:
    (folder / WEIGHTS["text_encoder"]).unlink()
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=sentence):
        read_parts(folder)


def test_a_configuration_as_deep_as_a_well(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json can't be read"):
        read_parts(folder)


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("length", [0, 5, 1000])
def test_a_truncated_file(folder: Path, part: str, length: int) -> None:
    path = folder / WEIGHTS[part]
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=part):
        read_parts(folder)


@pytest.mark.parametrize(
    "name",
    [
        "qformer/config.json",
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
        "image_processor/preprocessor_config.json",
        "model_index.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_broken_configuration(folder: Path, name: str) -> None:
    (folder / name).write_text("not json {")
    with pytest.raises(CheckpointError, match=name.split("/")[0].split(".")[0]):
        read_parts(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("qformer/config.json", {"qformer_config": {"hidden_size": "wide"}}),
        ("qformer/config.json", {"qformer_config": {"num_attention_heads": 0}}),
        ("qformer/config.json", {"vision_config": [1]}),
        ("qformer/config.json", {"vision_config": {"tower": "eiffel"}}),
        ("qformer/config.json", {"num_query_tokens": -1}),
        ("text_encoder/config.json", {"hidden_act": "none"}),
        ("text_encoder/config.json", {"hidden_size": "wide"}),
        ("text_encoder/config.json", {"max_position_embeddings": 10**15}),
        ("unet/config.json", {"block_out_channels": 7}),
        ("unet/config.json", {"_class_name": "AutoencoderKL"}),
        ("vae/config.json", {"down_block_types": ["Block"]}),
        ("scheduler/scheduler_config.json", {"beta_schedule": "none"}),
        ("scheduler/scheduler_config.json", {"_class_name": "AutoencoderKL"}),
        ("image_processor/preprocessor_config.json", {"size": "large"}),
        ("image_processor/preprocessor_config.json", {"image_mean": [0.5]}),
        ("image_processor/preprocessor_config.json", {"image_mean": [0.5, 0.5, float("nan")]}),
        ("image_processor/preprocessor_config.json", {"image_std": [0.5, 0, 0.5]}),
        ("image_processor/preprocessor_config.json", {"size": -5}),
        ("image_processor/preprocessor_config.json", {"size": 0}),
        ("image_processor/preprocessor_config.json", {"size": 100}),
        ("unet/config.json", {"cross_attention_dim": [32, 32]}),
        ("model_index.json", {"mean": ["a", "b", "c"]}),
        ("model_index.json", {"num_inference_steps": "fifty"}),
        ("model_index.json", {"num_inference_steps": 2.5}),
        ("model_index.json", {"prompt_reps": True}),
        ("model_index.json", {"guidance_scale": float("nan")}),
        ("model_index.json", {"noise_scale": float("inf")}),
        ("model_index.json", {"guidance_rescale": 10**400}),
    ],
)
def test_a_configuration_that_makes_no_sense(folder: Path, name: str, change: dict[str, Any]) -> None:
    edit_json(folder / name, **change)
    with pytest.raises(CheckpointError) as caught:
        BlipDiffusionPipeline.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_an_index_that_names_no_scheduler(folder: Path) -> None:
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name=None)
    edit_json(folder / "model_index.json", scheduler=5)
    with pytest.raises(CheckpointError, match="configuration of the scheduler can't be used"):
        read_parts(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "5", '{"model": []}'])
def test_words_that_make_no_sense(folder: Path, text: str) -> None:
    for path in (folder / "qformer_tokenizer").glob("vocab*"):
        path.unlink()
    (folder / "qformer_tokenizer" / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="no WordPiece vocabulary at") as caught:
        read_parts(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tensor", [torch.empty(3, device="meta"), torch.eye(3).to_sparse()], ids=["meta", "sparse"])
def test_tensors_without_all_their_numbers(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"one": torch.ones(2), "odd": tensor}, tmp_path / "model.bin")
    with pytest.raises(CheckpointError, match=r"holds odd without all its numbers \(meta or sparse\)"):
        read_file(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "part", ["qformer", "image_processor", "text_encoder", "tokenizer", "unet", "vae", "scheduler"]
)
def test_a_missing_part(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    name = {"qformer": "subject_encoder, qformer_tokenizer", "image_processor": "reference"}.get(part, part)
    with pytest.raises(CheckpointError, match=rf"incomplete: {name} missing\.$"):
        BlipDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"cross_attention_dim": 48}, "text encoder 32 wide, U-Net 48"),
        ("vae", {"latent_channels": 16}, "VAE's latents 16 wide, U-Net's input 4"),
    ],
)
def test_a_part_of_another_base(folder: Path, tmp_path: Path, part: str, change: dict[str, int], message: str) -> None:
    config = json.loads((folder / part / "config.json").read_text()) | change
    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    other = kind.from_config(config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match=f"The parts don't fit: {message}"):
        BlipDiffusionPipeline.from_pretrained(folder, **{part: tmp_path / "other"})
    other.save_pretrained(folder / part)
    with pytest.raises(CheckpointError, match=f"The parts don't fit: {message}"):
        BlipDiffusionPipeline.from_pretrained(folder)


def test_words_of_another_base(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(Path(__file__).parents[1] / "parity" / "golden" / "tok" / "clip", folder / "tokenizer")
    table = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    known = json.loads((folder / "text_encoder" / "config.json").read_text())["vocab_size"]
    more = {f"w{number}": number for number in range(len(table), known + 1)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(table | more))
    with pytest.raises(CheckpointError, match=rf"the tokenizer has {known + 1} words, the text encoder {known}"):
        BlipDiffusionPipeline.from_pretrained(folder)


def test_parts_alone_are_read_too(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != "vae":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    parts = read_parts(folder)
    assert parts == replace(Parts(), vae=parts.vae) and not parts.vae.training


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/tmp/no such folder"])
def test_an_unknown_model(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"use mini, a folder, or a hub id"):
        find_model(name)


def test_a_hub_id_that_cannot_be_had() -> None:
    with pytest.raises(CheckpointError, match=r"no folder nobody/nothing, and the hub can't provide it"):
        find_model("nobody/nothing")


@pytest.mark.parametrize("name", ["mini", "nobody/nothing"])
def test_a_keyword_that_nobody_knows(name: str) -> None:
    with pytest.raises(InputError, match=r"text_encoder can't be chosen"):
        BlipDiffusionPipeline.from_pretrained(name, text_encoder=None)


def test_a_model_may_be_called_mini(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.rename(tmp_path / "mini").parent)
    assert find_model(Path("mini")) == Path("mini") and find_model("mini") != Path("mini")
    assert BlipDiffusionPipeline.from_pretrained(Path("mini"), dtype=torch.float16).unet.dtype == torch.float16


def test_what_nobody_reads_is_not_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, *, revision: str | None = None, ignore_patterns: Any = None) -> str:
        asked.update(revision=revision, ignore_patterns=ignore_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    published = ["unet/config.json", "qformer/pytorch_model.bin", "vision_encoder/pytorch_model.bin", "x.ckpt"]
    assert find_model("owner/name", revision="main") == folder
    kept = [name for name in published if not any(fnmatch(name, unread) for unread in asked["ignore_patterns"])]
    assert kept == published[:2] and asked["revision"] == "main"
    find_model("owner/name", ignore_patterns=None)
    assert asked["ignore_patterns"] is None


# ------------------------------------------------------------------------------------------------------------- pickles


class Harm:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("part", ["qformer", "text_encoder", "unet", "vae"])
def test_code_in_a_pickle_does_not_run(folder: Path, tmp_path: Path, part: str, zipped: bool) -> None:
    path = folder / WEIGHTS[part]
    path.unlink()
    name = "diffusion_pytorch_model.bin" if part in ("unet", "vae") else "pytorch_model.bin"
    torch.save({"harm": Harm(tmp_path / "harmed")}, path.with_name(name), _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError):
        read_parts(folder)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_of_weights_is_read(folder: Path, zipped: bool) -> None:
    path = folder / WEIGHTS["text_encoder"]
    state = load_file(path)
    path.unlink()
    torch.save(state, path.with_name("pytorch_model.bin"), _use_new_zipfile_serialization=zipped)
    loaded = load_text_encoder(folder / "text_encoder").state_dict()
    assert all(torch.equal(loaded[name.removeprefix("text_model.")], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_pickle(tmp_path: Path, zipped: bool) -> None:
    """Whatever byte is another, there are tensors in it or one sentence."""
    path, rng = tmp_path / "model.bin", random.Random(0)
    torch.save({"a": torch.ones(2, 3), "b": torch.arange(4)}, path, _use_new_zipfile_serialization=zipped)
    good, sentences = path.read_bytes(), []
    for _ in range(300):
        bad = bytearray(good)
        bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bad)
        try:
            read_file(path)
        except CheckpointError as error:
            sentences.append(str(error))
    assert len(sentences) > 50 and not [sentence for sentence in sentences if "\n" in sentence]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt"])
@pytest.mark.parametrize("text", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "<!DOCTYPE html>"])
def test_a_page_in_place_of_weights(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match="is not a file of weights: fetch it again"):
        read_file(tmp_path / name)


def test_a_pickle_of_something_else(folder: Path) -> None:
    path = folder / WEIGHTS["text_encoder"]
    path.unlink()
    torch.save([1, 2], path.with_name("pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        load_text_encoder(folder / "text_encoder")


# -------------------------------------------------------------------------------------------------- references, words


def test_mean_and_spread_of_the_index_win(folder: Path) -> None:
    edit_json(folder / "model_index.json", mean=[0.1, 0.2, 0.3], std=None)
    processor = folder / "image_processor" / "preprocessor_config.json"
    edit_json(processor, image_std=[0.4, 0.5, 0.6], size={"shortest_edge": 48})
    reference = read_parts(folder).reference
    assert reference is not None
    assert (reference.size, reference.mean, reference.std) == (48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_another_word_list(folder: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"]))
    tokenizer = read_parts(folder, qformer_tokenizer=words).qformer_tokenizer
    assert tokenizer("dog").input_ids == [2, 5, 3]
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("[DEC]", 6)
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "dog"]))
    tokenizer = read_parts(folder, qformer_tokenizer=words).qformer_tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_token_id, len(tokenizer)) == ("[DEC]", 5, 7)
    with pytest.raises(CheckpointError, match="no WordPiece vocabulary"):
        read_parts(folder, qformer_tokenizer=tmp_path / "nowhere")


def test_whole_wants_every_part() -> None:
    with pytest.raises(CheckpointError, match=r"subject_encoder, reference, .*scheduler missing"):
        assemble(Parts(), Path("here"))


def test_the_words_that_ship_are_berts() -> None:
    tokenizer = bert_tokenizer()
    assert len(tokenizer) == 30523
    assert tokenizer("dog").input_ids == [101, 3899, 102]  # bert-base-uncased's own numbers
    assert tokenizer.bos_token_id == 30522  # [DEC]

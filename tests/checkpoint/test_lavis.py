"""LAVIS' files. They are written here by hand, by the table of its names, from the published code's weights."""

import io
import json
import os
import pickle
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from blip_diffusion.checkpoint import lavis
from blip_diffusion.checkpoint.convert import convert
from blip_diffusion.checkpoint.model_folder import read_parts
from blip_diffusion.cli.main import main
from blip_diffusion.errors import CheckpointError
from blip_diffusion.fileio import replace_path
from blip_diffusion.model import InferenceConfig
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline

GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "pipe"
WORD_LIST = GOLDEN.parent / "tok" / "bert"
WIDTH, WORDS = 16, 64
QKV = "visual_encoder.transformer.resblocks.0.attn.in_proj_weight"
State = dict[str, Tensor]


def blip_weights(published: State) -> State:
    """`blip_weight.pt`: what the published Q-Former folder has, by LAVIS' names, and the heads of stage 1."""
    state: State = {}
    for name, tensor in published.items():
        if name.startswith("embeddings."):
            state[f"Qformer.bert.{name}"] = tensor
        elif name.startswith("encoder."):
            state["Qformer.bert." + name.replace("attention.attention.", "attention.self.")] = tensor
        elif name == "query_tokens":
            state[name] = tensor
        elif name.startswith("visual_encoder.post_layernorm"):
            state[name.replace("visual_encoder.post_layernorm", "ln_vision")] = tensor
        elif name.startswith("visual_encoder."):
            state[vision_name(name)] = tensor.squeeze() if "_embedding" in name and "patch" not in name else tensor
    return state | heads(state["Qformer.bert.embeddings.word_embeddings.weight"])


def vision_name(name: str) -> str:
    for old, new in [
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding", "positional_embedding"),
        ("embeddings.patch_embedding", "conv1"),
        ("pre_layernorm", "ln_pre"),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("self_attn.qkv.", "attn.in_proj_"),
        ("self_attn.projection", "attn.out_proj"),
        ("fc1", "c_fc"),
        ("fc2", "c_proj"),
    ]:
        name = name.replace(old, new)
    return name


def heads(words: Tensor) -> State:
    torch.manual_seed(0)
    bias = torch.randn(WORDS)
    return {
        "vision_proj.weight": torch.randn(256, WIDTH),
        "vision_proj.bias": torch.randn(256),
        "text_proj.weight": torch.randn(256, WIDTH),
        "text_proj.bias": torch.randn(256),
        "itm_head.weight": torch.randn(2, WIDTH),
        "itm_head.bias": torch.randn(2),
        "temp": torch.tensor(0.05),
        "Qformer.cls.predictions.bias": bias,
        "Qformer.cls.predictions.transform.dense.weight": torch.randn(WIDTH, WIDTH),
        "Qformer.cls.predictions.transform.dense.bias": torch.randn(WIDTH),
        "Qformer.cls.predictions.transform.LayerNorm.weight": torch.randn(WIDTH),
        "Qformer.cls.predictions.transform.LayerNorm.bias": torch.randn(WIDTH),
        "Qformer.cls.predictions.decoder.weight": words,
        "Qformer.cls.predictions.decoder.bias": bias,
    }


def old_vae(state: State) -> State:
    """As diffusers 0.16 called its attention."""
    swaps = [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")]
    renamed = {}
    for name, tensor in state.items():
        for new, old in swaps:
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lavis") / "blip-diffusion"
    published = load_file(GOLDEN / "qformer" / "model.safetensors")
    text = load_file(GOLDEN / "text_encoder" / "model.safetensors")
    states = {
        "blip_model/blip_weight.pt": blip_weights({n: t for n, t in published.items() if "position_ids" not in n}),
        "proj_layer/proj_weight.pt": {
            name.removeprefix("proj_layer."): t for name, t in published.items() if name.startswith("proj_layer")
        },
        "text_encoder/pytorch_model.bin": {**text, "text_model.embeddings.position_ids": torch.arange(77)[None]},
        "unet/diffusion_pytorch_model.bin": load_file(GOLDEN / "unet" / "diffusion_pytorch_model.safetensors"),
        "vae/diffusion_pytorch_model.bin": old_vae(load_file(GOLDEN / "vae" / "diffusion_pytorch_model.safetensors")),
    }
    for name, state in states.items():
        (folder / name).parent.mkdir(parents=True)
        torch.save({key: tensor.clone() for key, tensor in state.items()}, folder / name)
    return folder


@pytest.fixture
def archive(original: Path, tmp_path: Path) -> Path:
    path = tmp_path / "blip-diffusion.tar.gz"
    with tarfile.open(path, "w:gz") as files:
        files.add(original, arcname="blip-diffusion")
    return path


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    unet = load_file(GOLDEN / "unet" / "diffusion_pytorch_model.safetensors")
    model: dict[str, Any] = {f"unet.{name}": tensor * 1.01 for name, tensor in unet.items()}
    model["ctx_embeddings_cache"] = torch.nn.Parameter(torch.full((1, 4, 16), 0.1))
    model["blip.Qformer.bert.embeddings.position_ids"] = torch.arange(512)[None]
    table = {"model": model, "optimizer": {"state": {}}, "config": {"run": {"lr": 5e-6}}, "scaler": None, "iters": 40}
    torch.save(table, tmp_path / "checkpoint_40.pth")
    return tmp_path / "checkpoint_40.pth"


def drawn(folder: Path, dog: Image.Image, **asked: Any) -> Tensor:
    pipe = BlipDiffusionPipeline.from_pretrained(folder, qformer_tokenizer=WORD_LIST)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipe("swimming", dog, "teapot", "dog", height=32, width=32, num_inference_steps=2, generator=noise,
                output_type="pt", **asked).images  # fmt: skip


def same(one: Path, other: Path) -> bool:
    ours, theirs = (torch.load(path, weights_only=True) for path in (one, other))
    if isinstance(ours, Tensor):
        return torch.equal(ours, theirs)
    theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("position_ids")}
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("packed", [False, True])
def test_there_and_back_bit_for_bit(
    original: Path, archive: Path, tmp_path: Path, packed: bool, dog: Image.Image
) -> None:
    convert(str(archive if packed else original), tmp_path / "ours", base=str(GOLDEN))
    for part in ("qformer", "text_encoder", "unet", "vae"):
        (weights,) = (tmp_path / "ours" / part).glob("*.safetensors")
        ours, published = load_file(weights), load_file(GOLDEN / part / weights.name)
        published = {name: tensor for name, tensor in published.items() if not name.endswith("position_ids")}
        assert ours.keys() == published.keys()
        assert all(torch.equal(ours[name], published[name]) for name in ours)
    assert torch.equal(drawn(tmp_path / "ours", dog), drawn(GOLDEN, dog))
    for _ in range(2):  # the second takes the first one's place
        convert(str(tmp_path / "ours"), tmp_path / "back", to="lavis")
    for name in lavis.FILES[:-1]:
        assert same(tmp_path / "back" / name, original / name), name


def test_the_published_folder_there_and_back_bit_for_bit(tmp_path: Path) -> None:
    convert(str(GOLDEN), tmp_path / "lavis", to="lavis")
    convert(str(tmp_path / "lavis"), tmp_path / "back", base=str(GOLDEN))
    assert not (tmp_path / "back" / "heads.safetensors").exists()  # there were none
    for part in ("qformer", "text_encoder", "unet", "vae"):
        (weights,) = (tmp_path / "back" / part).glob("*.safetensors")
        ours, published = load_file(weights), load_file(GOLDEN / part / weights.name)
        unread = {name for name in published if name.endswith("position_ids")}
        assert ours.keys() == published.keys() - unread
        assert all(torch.equal(ours[name], published[name]) for name in ours)


def test_the_heads_of_stage_1_are_kept(original: Path, tmp_path: Path) -> None:
    from blip_diffusion.checkpoint.components import load_heads
    from blip_diffusion.modules.heads import ContrastiveHead, LanguageHead, MatchingHead
    from blip_diffusion.modules.qformer import QFormerConfig

    convert(str(original), tmp_path / "ours", base=str(GOLDEN))
    config = QFormerConfig(width=WIDTH, vocabulary=WORDS, heads=2)
    ours = {"contrastive": ContrastiveHead(WIDTH), "matching": MatchingHead(WIDTH), "language": LanguageHead(config)}
    assert sorted(load_heads(ours, tmp_path / "ours")) == sorted(ours)
    assert ours["contrastive"].temperature == torch.tensor(0.05)


def test_a_tuned_subject(tuned: Path, tmp_path: Path, dog: Image.Image) -> None:
    convert(str(tuned), tmp_path / "rex", base=str(GOLDEN))
    subject = load_file(tmp_path / "rex" / "lavis-subject.safetensors")["subject"]
    assert torch.equal(subject, torch.full((1, 4, 16), 0.1))
    assert not torch.equal(drawn(tmp_path / "rex", dog), drawn(GOLDEN, dog))
    assert drawn(tmp_path / "rex", dog, subject_embeds=subject).isfinite().all()


def test_the_command(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(original), "--base", str(GOLDEN), "--out", str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]  # nothing is left lying about
    assert main(["convert", str(original), "--base", str(GOLDEN), "--out", str(tmp_path / "ours")]) == 0


def test_half_the_size_for_lavis(original: Path, tmp_path: Path, dog: Image.Image) -> None:
    arguments = ["convert", str(GOLDEN), "--to", "lavis", "--dtype", "float16", "--out", str(tmp_path / "half")]
    assert main(arguments) == 0
    for name in lavis.FILES[:-1]:
        state = torch.load(tmp_path / "half" / name, weights_only=True)
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    convert(str(tmp_path / "half"), tmp_path / "back", base=str(GOLDEN))
    assert (drawn(tmp_path / "back", dog) - drawn(GOLDEN, dog)).abs().mean() < 0.01


def test_what_lavis_does_not_say_is_the_bases(original: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(GOLDEN, tmp_path / "base"))
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps(index | {"num_inference_steps": 7, "prompt_reps": 3}))
    convert(str(original), tmp_path / "out", base=str(base))
    settings = [read_parts(path, qformer_tokenizer=WORD_LIST).inference for path in (tmp_path / "out", base)]
    assert settings == 2 * [InferenceConfig(prompt_reps=3, num_inference_steps=7)]


def test_where_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "model").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model" / "model_index.json").write_text('{"_class_name": "BlipDiffusionPipeline"}')
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "model")
    convert(str(GOLDEN), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "model" / "unet").is_dir()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["model"]


@pytest.fixture
def controlled(tmp_path: Path) -> Path:
    """The published folder with a ControlNet, and with what people wrote beside it."""
    pipe = BlipDiffusionPipeline.from_pretrained(
        GOLDEN, controlnet=GOLDEN.parent / "controlnet", qformer_tokenizer=WORD_LIST
    )
    pipe.save_pretrained(tmp_path / "controlled")
    for name in ("README.md", "LICENCES.md"):
        (tmp_path / "controlled" / name).write_text(f"# {name}")
    return tmp_path / "controlled"


def test_a_controlnet_and_the_papers_go_along(controlled: Path, tmp_path: Path) -> None:
    convert(str(controlled), tmp_path / "out", dtype=torch.float16)
    net = "controlnet/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / "out" / net), load_file(controlled / net)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name].half()) for name in ours)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "BlipDiffusionControlNetPipeline"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in controlled.iterdir()}
    assert (tmp_path / "out" / "LICENCES.md").read_text() == "# LICENCES.md"


def test_lavis_has_no_controlnet_and_no_lora(controlled: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="LAVIS has no place for a ControlNet: convert a copy of the model without"
    ):
        convert(str(controlled), tmp_path / "out", to="lavis")
    shutil.rmtree(controlled / "controlnet")
    save_file({"down.lora_A.weight": torch.ones(2, 4)}, controlled / "consistency_lora.safetensors")
    with pytest.warns(match="consistency LoRA is left out: LAVIS has no place for it"):
        convert(str(controlled), tmp_path / "out", to="lavis")
    assert (tmp_path / "out" / lavis.BLIP).is_file() and (tmp_path / "out" / "README.md").is_file()


def test_a_folder_onto_itself(controlled: Path, original: Path, tmp_path: Path) -> None:
    save_file({"contrastive.temperature": torch.ones(())}, controlled / "heads.safetensors")
    save_file({"subject": torch.ones(1, 4, 16)}, controlled / "lavis-subject.safetensors")
    (controlled / ".git").mkdir()
    (controlled / ".git" / "HEAD").write_text("main")
    (controlled / "notes.txt").write_text("mine")
    (controlled / "latest").symlink_to("gone")
    (controlled / ".git" / "up").symlink_to(tmp_path)
    before = {path.relative_to(controlled) for path in controlled.rglob("*")}
    convert(str(controlled), controlled, dtype=torch.float16)
    assert {path.relative_to(controlled) for path in controlled.rglob("*")} == before
    assert (controlled / "latest").is_symlink() and (controlled / ".git" / "up").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["controlled"]


def test_what_is_to_be_replaced_comes_back_where_that_fails(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").write_text("precious")
    with pytest.raises(FileNotFoundError):
        replace_path(tmp_path / "made", tmp_path / "out", aside=tmp_path / "earlier")
    assert (tmp_path / "out" / "model").read_text() == "precious" and not (tmp_path / "earlier").exists()


def test_clips_words_are_clips() -> None:
    tokenizer = lavis.clip_tokenizer()
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a dog").input_ids == [49406, 320, 1125, 539, 320, 1929, 49407]
    assert tokenizer.pad_token_id == 49407


# -------------------------------------------------------------------------------------------------------------- hostile


class Code:
    """A pickle that runs something when it is read."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("harm",)


def broken(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd" if kind != tarfile.REGTYPE else ""
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("blip-diffusion/../../unet/diffusion_pytorch_model.bin"),
        member("/unet/diffusion_pytorch_model.bin"),
        member("unet/diffusion_pytorch_model.bin", tarfile.SYMTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.LNKTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.CHRTYPE),
        member("unet/diffusion_pytorch_model.bin", tarfile.FIFOTYPE),
    ],
)
def test_a_suspicious_archive_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as files:
        files.addfile(bad, io.BytesIO())
    with pytest.raises(CheckpointError, match="which no archive of weights needs: it is refused"):
        convert(str(tmp_path / "bad.tar"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tar"]


def test_an_archive_that_would_fill_the_disk_is_refused(tmp_path: Path) -> None:
    info = member("unet/diffusion_pytorch_model.bin", size=2**40)
    (tmp_path / "bomb.tar").write_bytes(info.tobuf() + b"\0" * 1024)
    with pytest.raises(CheckpointError, match="of 1024 GiB: it is refused"):
        convert(str(tmp_path / "bomb.tar"), tmp_path / "out")


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_a_truncated_archive(archive: Path, tmp_path: Path, length: int) -> None:
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"not an archive that can be read|missing"):
        convert(str(archive), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("packed", ["gz", "xz", "bz2"])
def test_a_damaged_archive(original: Path, tmp_path: Path, packed: str) -> None:
    with tarfile.open(tmp_path / "whole.tar", f"w:{packed}") as files:
        files.add(original, arcname="blip-diffusion")
    data, rng = (tmp_path / "whole.tar").read_bytes(), random.Random(0)
    for _ in range(6):
        place = rng.randrange(100, len(data) - 100)
        (tmp_path / "bad.tar").write_bytes(data[:place] + rng.randbytes(40) + data[place + 40 :])
        with pytest.raises(CheckpointError, match=r"not an archive that can be read .*: fetch it again"):
            lavis.unpack(tmp_path / "bad.tar", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (lavis.BLIP, lambda s: s.pop("query_tokens"), r"the Q-Former: 1 missing \(qformer.query_tokens\)"),
        (lavis.BLIP, lambda s: s.update(more=torch.ones(1)), r"the Q-Former: 1 unexpected \(more\)"),
        (lavis.BLIP, lambda s: s.update(query_tokens=torch.ones(1, 3, 16)), r"is \(1, 3, 16\), not \(1, 4, 16\)"),
        (lavis.BLIP, lambda s: s.update({"Qformer.cls.predictions.decoder.bias": torch.ones(64)}), "is not tied to"),
        (lavis.BLIP, lambda s: s.update(query_tokens=s["query_tokens"].to(torch.int8)), "1 not of floats"),
        (lavis.BLIP, lambda s: s.update({QKV: torch.tensor(1.0)}), "3 of another shape"),
        (lavis.PROJECTION, lambda s: s.pop("dense1.bias"), "the Q-Former: 1 missing"),
        (lavis.TEXT, lambda s: s.pop("text_model.final_layer_norm.bias"), "the text encoder: 1 missing"),
        (lavis.UNET, lambda s: s.update(more=torch.ones(1)), "the unet: 1 unexpected"),
        (lavis.VAE, lambda s: s.pop("encoder.conv_in.bias"), "the vae: 1 missing"),
        (lavis.UNET, lambda s: (s.clear(), s.update(code=Code())), "running it could do harm: it is refused"),
    ],
)
def test_a_damaged_original(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    broken(folder / name, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        (Code(), "running it could do harm"),
        ([1, 2], "should be one tensor"),
        (torch.ones(4, 16), "should be one tensor"),
    ],
)
def test_a_tuned_subject_that_is_none(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subject: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    (folder / lavis.CACHE).parent.mkdir()
    torch.save(subject, folder / lavis.CACHE)
    with pytest.raises(CheckpointError, match=message):
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))
    assert not Path("harm").exists()


def test_a_missing_file(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    (folder / lavis.UNET).unlink()
    with pytest.raises(CheckpointError, match=r"unet/diffusion_pytorch_model\.bin missing"):
        convert(str(folder), tmp_path / "out", base=str(GOLDEN))


def test_a_tuned_file_that_is_none(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="say with --base which model"):
        convert(str(tuned), tmp_path / "out")
    with (tmp_path / "code.pth").open("wb") as file:
        pickle.dump({"model": Code()}, file)
    with pytest.raises(CheckpointError, match="running it could do harm"):
        convert(str(tmp_path / "code.pth"), tmp_path / "out", base=str(GOLDEN))
    torch.save({"model": {"unet.conv_in.bias": torch.ones(8)}}, tmp_path / "half.pth")
    with pytest.raises(CheckpointError, match="lacks a U-Net or ctx_embeddings_cache"):
        convert(str(tmp_path / "half.pth"), tmp_path / "out", base=str(GOLDEN))


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="is there already and is no model's folder"):
        convert(str(GOLDEN), tmp_path / "home")
    (tmp_path / "home" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CheckpointError, match="is there already and is no model's folder"):
        convert(str(GOLDEN), tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_an_earlier_model_gives_way_with_its_papers(controlled: Path, tmp_path: Path) -> None:
    convert(str(controlled), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    convert(str(GOLDEN), tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not {"README.md", "LICENCES.md", "controlnet"} & {path.name for path in (tmp_path / "out").iterdir()}


def test_lavis_has_no_other_image_encoder(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="LAVIS knows only CLIP's image encoder"):
        convert(str(tiny_folder), tmp_path / "out", to="lavis")


def pax_header(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as files:
        member = tarfile.TarInfo("blip/x")
        member.pax_headers = {"comment": "x" * 2**21}
        files.addfile(member)


def long_name(path: Path) -> None:
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as files:
        files.addfile(tarfile.TarInfo("blip/" + "x" * 2**21))


def many_members(path: Path) -> None:
    with tarfile.open(path, "w:gz") as files:
        for number in range(1100):
            files.addfile(tarfile.TarInfo(f"blip/{number}"))


@pytest.mark.parametrize(
    ("write", "sentence"),
    [(pax_header, "has a header of"), (long_name, "has a header of"), (many_members, "holds more than 1000 files")],
)
def test_archives_that_would_fill_memory_or_time(write: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "x.tar.gz")
    with pytest.raises(CheckpointError, match=sentence):
        lavis.unpack(tmp_path / "x.tar.gz", tmp_path / "out")

"""LoRAs and textual inversions: whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from blip_diffusion.errors import BlipDiffusionError, CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

Draw = Callable[..., Tensor]
State = dict[str, Tensor]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the libraries' own
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def fresh(tiny_folder: Path) -> Callable[[], BlipDiffusionPipeline]:
    def load() -> BlipDiffusionPipeline:
        pipe = BlipDiffusionPipeline.from_pretrained(tiny_folder)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture
def draw(dog: Image.Image) -> Draw:
    def draw(pipe: BlipDiffusionPipeline, prompt: str = "on the beach") -> Tensor:
        return pipe(prompt, dog, "dog", generator=torch.Generator().manual_seed(0), output_type="pt").images

    return draw


def made(pipe: BlipDiffusionPipeline, *, unet: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> State:
    """A LoRA that says something, by peft's names; it stays on the pipeline's parts."""
    torch.manual_seed(0)
    state: State = {}
    for name, targets in (("unet", unet), ("text_encoder", words)):
        if targets:
            part = getattr(pipe, name)
            part.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=list(targets), init_lora_weights=False))
            state |= {f"{name}.{key}": tensor for key, tensor in get_peft_model_state_dict(part).items()}
    return state


def as_peft(state: State) -> State:
    return state


def as_transformers_4(state: State) -> State:
    return {name.replace("text_encoder.", "text_encoder.text_model."): tensor for name, tensor in state.items()}


def as_diffusers(state: State) -> State:
    return convert_state_dict_to_diffusers(state)


def as_first_diffusers(state: State) -> State:
    """The attention of the U-Net alone."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn" in name:
            layer, half = name.split(".lora_")
            place = layer.rpartition(".")[2] if not layer.endswith(".0") else "to_out"
            where = layer.removesuffix(f".{place}").removesuffix(".to_out.0")
            renamed[f"{where}.processor.{place}_lora.{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
    return renamed


def as_kohya(state: State) -> State:
    renamed = {}
    for name, tensor in state.items():
        layer, half = name.split(".lora_")
        layer = layer.replace("text_encoder.", "lora_te_text_model.").replace("unet.", "lora_unet.").replace(".", "_")
        renamed[f"{layer}.lora_{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
        renamed[f"{layer}.alpha"] = torch.tensor(4.0)
    return renamed


UNET = {"unet": ATTENTION}
BOTH = {"unet": (*ATTENTION, "ff.net.0.proj", "proj_in"), "words": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")}


@pytest.mark.parametrize(
    ("write", "layers"),
    [
        (as_peft, BOTH),
        (as_peft, {"words": ("q_proj", "v_proj")}),
        (as_transformers_4, BOTH),
        (as_diffusers, UNET),
        (as_diffusers, {"unet": (*ATTENTION, "proj_in")}),
        (as_first_diffusers, UNET),
        (as_kohya, BOTH),
    ],
)
def test_a_lora_by_each_of_its_names(
    fresh: Callable[[], Any], draw: Draw, tmp_path: Path, write: Callable[[State], State], layers: dict
) -> None:
    tuned, other = fresh(), fresh()
    save_file({n: t.contiguous() for n, t in write(made(tuned, **layers)).items()}, tmp_path / "lora.safetensors")
    plain = draw(other)
    other.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="style")
    assert torch.equal(draw(other), draw(tuned))
    assert (draw(other) - plain).abs().max() > 1e-3
    other.unload_lora_weights()
    assert torch.equal(draw(other), plain)


def test_as_diffusers_saves_it(fresh: Callable[[], Any], draw: Draw, tmp_path: Path) -> None:
    tuned, other = fresh(), fresh()
    state = {name.removeprefix("unet."): tensor for name, tensor in made(tuned, unet=ATTENTION).items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(state))
    other.load_lora_weights(tmp_path)
    assert torch.equal(draw(other), draw(tuned))


def test_two_loras_and_their_weights(fresh: Callable[[], Any], draw: Draw) -> None:
    pipe, state = fresh(), made(fresh(), **BOTH)
    pipe.load_lora_weights(state, adapter_name="one")
    alone = draw(pipe)
    pipe.load_lora_weights(state, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    torch.testing.assert_close(draw(pipe), alone, atol=1e-4, rtol=0)
    pipe.set_adapters(["one", "two"], [0.0, 0.0])
    torch.testing.assert_close(draw(pipe), draw(fresh()), atol=1e-6, rtol=0)


def test_what_is_fused_is_drawn(fresh: Callable[[], Any], draw: Draw) -> None:
    """What was read and computed before it is not answered again."""
    pipe, state = fresh(), made(fresh(), **BOTH)
    plain = draw(pipe)
    pipe.load_lora_weights(state, adapter_name="style")
    with_style = draw(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(draw(pipe), with_style, atol=1e-4, rtol=0)
    assert (with_style - plain).abs().max() > 1e-3
    other = fresh()
    other.load_lora_weights(state, adapter_name="style")
    other.fuse_lora()
    torch.testing.assert_close(draw(other), with_style, atol=1e-4, rtol=0)
    other.unfuse_lora()
    other.disable_lora()
    torch.testing.assert_close(draw(other), plain, atol=1e-4, rtol=0)


def test_where_one_is_taken_out_no_other_comes(fresh: Callable[[], Any], draw: Draw) -> None:
    pipe, state = fresh(), made(fresh(), **BOTH)
    plain = draw(pipe)
    for name in ("one", "two"):
        pipe.load_lora_weights(state, adapter_name=name)
    pipe.delete_adapters("two")
    assert pipe.get_active_adapters() == [] and torch.equal(draw(pipe), plain)


def wider(state: State) -> State:
    """As of a base whose text is 99 wide."""
    return {name: torch.ones(4, 99) if "attn2.to_v.lora_A" in name else tensor for name, tensor in state.items()}


def narrow(state: State) -> State:
    return {name: torch.ones(3, 4) if "fc1.lora_B" in name else tensor for name, tensor in state.items()}


def deeper(state: State) -> State:
    return state | {f"unet.down_blocks.9.conv.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}


def halved(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if "lora_A" in name}


def of_sdxl(state: State) -> State:
    return state | {"text_encoder_2.encoder.layers.0.mlp.fc1.lora_A.weight": torch.ones(4, 4)}


def of_flux(state: State) -> State:
    return {f"transformer.blocks.0.attn.to_q.lora_{half}.weight": torch.ones(4, 4) for half in "AB"}


def without_part(state: State) -> State:
    return {name.removeprefix("unet."): tensor for name, tensor in state.items() if name.startswith("unet.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"4 of another shape \(unet.\S+lora_A.weight is \(4, 99\), not \(4, 32\), "),
        (narrow, r"of another shape \(text_encoder.\S+lora_B.weight is \(3, 4\), not \(\d+, 4\)"),
        (deeper, r"2 unexpected \(unet.down_blocks.9.conv.lora_A.weight"),
        (halved, r"\d+ missing \(text_encoder.\S+lora_B.weight"),
        (of_sdxl, r"1 unexpected \(text_encoder_2"),
        (of_flux, r"2 unexpected \(transformer"),
        (without_part, r"\d+ unexpected \(down_blocks"),
        (lambda state: {}, "it has no layers"),
        (lambda state: {"unet.conv_in.weight": torch.ones(2, 2)}, r"1 unexpected \(unet.conv_in.weight\)"),
    ],
)
def test_a_lora_for_another_base(
    fresh: Callable[[], Any], draw: Draw, change: Callable[[State], State], message: str
) -> None:
    pipe, state = fresh(), made(fresh(), **BOTH)
    plain = draw(pipe)
    with pytest.raises(CheckpointError, match=rf"^The LoRA is for another model: .*{message}") as caught:
        pipe.load_lora_weights(change(state))
    assert "\n" not in str(caught.value)
    assert pipe.get_list_adapters() == {} and torch.equal(draw(pipe), plain)
    assert not any("lora" in name for part in (pipe.unet, pipe.text_encoder) for name in part.state_dict())
    pipe.load_lora_weights(state)  # and the right one still can be loaded
    assert not torch.equal(draw(pipe), plain)


def test_a_name_that_is_taken_in_one_part(fresh: Callable[[], Any], draw: Draw) -> None:
    """What the second part refuses is taken out of the first again."""
    pipe, state = fresh(), made(fresh(), **BOTH)
    pipe.load_lora_weights({n: t for n, t in state.items() if n.startswith("text_encoder")}, adapter_name="style")
    before = draw(pipe)
    with pytest.raises(CheckpointError, match=r"The LoRA can't be loaded: .*style already exists"):
        pipe.load_lora_weights(state, adapter_name="style")
    assert pipe.get_list_adapters() == {"text_encoder": ["style"]} and torch.equal(draw(pipe), before)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "broken.safetensors", "harm.bin"])
def test_a_lora_that_cannot_be_read(fresh: Callable[[], Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    torch.save({"harm": tmp_path}, tmp_path / "harm.bin")
    with pytest.raises(CheckpointError, match=r"The LoRA can't be read|There is no LoRA at|it is refused"):
        fresh().load_lora_weights(tmp_path / name)


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("part", "kind"),
    [("hada_w1_a", "a LoHa"), ("lokr_w1", "a LoKr"), ("lora_mid.weight", "a LoCon"), ("diff", "a full difference")],
)
def test_other_adapters_are_refused_whole(own: BlipDiffusionPipeline, tmp_path: Path, part: str, kind: str) -> None:
    state = {f"{LAYER}.{part}": torch.zeros(4, 4), f"{LAYER}.alpha": torch.tensor(1.0)}
    save_file(state, tmp_path / "other.safetensors")
    torch.save(state, tmp_path / "other.pt")
    for given in (state, tmp_path / "other.safetensors", tmp_path / "other.pt"):
        with pytest.raises(CheckpointError, match=f"it is {kind}"):
            own.load_lora_weights(given)


def test_what_is_taken_for_a_lora(own: BlipDiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "rex.safetensors", metadata={"blip-diffusion": "{}"})
    with pytest.raises(CheckpointError, match="a folder of PEFT's save_pretrained"):
        own.load_lora_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"a tuned subject, not a LoRA: use pipe\.load_subject"):
        own.load_lora_weights(tmp_path / "rex.safetensors")


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pt", "gone", "./gone/lora", "folder/gone"])
def test_a_mistyped_path_is_never_asked_of_the_hub(
    own: BlipDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for load in (own.load_lora_weights, own.load_textual_inversion, BlipDiffusionPipeline.from_pretrained):
        with pytest.raises(CheckpointError, match=f"There is no .*{name}"):
            load(name)
    with pytest.raises(CheckpointError, match=f"There is no AutoencoderTiny at {name}"):
        own.set_preset(Preset(tiny_vae=name))


def test_settings_of_a_stranger(fresh: Callable[[], Any], tmp_path: Path) -> None:
    state = made(fresh(), unet=("to_q",))
    header = {"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": "(.*.*)*(.*.*)*z"}
    save_file(state, tmp_path / "regex.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"header has a 'unet\.target_modules'"):
        fresh().load_lora_weights(tmp_path / "regex.safetensors")
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="not finite"):
        fresh().load_lora_weights({**state, name: state[name] * float("nan")})
    with pytest.raises(CheckpointError, match="has the alpha nan"):
        fresh().load_lora_weights({f"{LAYER}.lora_down.weight": torch.zeros(4, 32),
                                   f"{LAYER}.lora_up.weight": torch.zeros(32, 4),
                                   f"{LAYER}.alpha": torch.tensor(float("nan"))})  # fmt: skip


def test_a_textual_inversion_of_several_vectors(fresh: Callable[[], Any], draw: Draw) -> None:
    pipe = fresh()
    plain, before = draw(pipe), draw(pipe, "rex on the beach")
    torch.manual_seed(0)
    pipe.load_textual_inversion(torch.randn(3, pipe.text_encoder.config.hidden_size), token="<rex>")
    assert torch.equal(draw(pipe), plain)
    assert not torch.equal(draw(pipe, "<rex> on the beach"), before)
    first = pipe.tokenizer.convert_tokens_to_ids("<rex>")
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(["<rex>"], pipe.tokenizer)).input_ids[0]
    assert len(ids) == 5 and first in ids and len(set(ids)) == 5


def test_words_in_a_file(fresh: Callable[[], Any], draw: Draw, tmp_path: Path) -> None:
    pipe, other = fresh(), fresh()
    word = torch.randn(1, pipe.text_encoder.config.hidden_size)
    save_file({"<rex>": word}, tmp_path / "rex.safetensors")
    pipe.load_textual_inversion(str(tmp_path / "rex.safetensors"))
    other.load_textual_inversion(word, token="<rex>")
    assert torch.equal(draw(pipe, "<rex>"), draw(other, "<rex>"))


def automatic(name: Any, tensor: Any) -> dict[str, Any]:
    return {"string_to_param": {"*": tensor}, "name": name}


@pytest.mark.parametrize(
    ("table", "word"),
    [
        ({"emb_params": torch.ones(2, 32)}, "rex"),
        ({"<own>": torch.ones(2, 32)}, "<own>"),
        (automatic("web", torch.ones(2, 32)), "web"),
        (automatic(7, torch.ones(2, 32)), "rex"),
        (torch.ones(32), "rex"),
    ],
)
def test_a_file_that_names_no_word_is_named_after_itself(
    own: BlipDiffusionPipeline, tmp_path: Path, table: Any, word: str
) -> None:
    torch.save(table, tmp_path / "rex.pt")
    own.load_textual_inversion(tmp_path / "rex.pt")
    assert word in own.tokenizer.get_added_vocab()


def test_a_category_of_several_vectors_is_whole(own: BlipDiffusionPipeline, dog: Image.Image) -> None:
    torch.manual_seed(0)
    own.load_textual_inversion(torch.randn(3, 32), "<rex>")
    whole = own.maybe_convert_prompt("<rex>", own.tokenizer)

    def drawn(*categories: str) -> Tensor:
        return own("x", dog, *categories, generator=torch.Generator().manual_seed(0), output_type="pt").images

    assert torch.equal(drawn("dog", "<rex>"), drawn("dog", whole))
    assert torch.equal(drawn("<rex>"), drawn("<rex>", whole))
    assert not torch.equal(drawn("dog", "<rex>"), drawn("dog", "<rex>_1"))


@pytest.mark.parametrize(
    ("given", "token", "sentence"),
    [
        (torch.ones(2, 99), "<rex>", "is for another model: its vectors are 99 wide, and this model's 32"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, None, r"holds 2 tensors \(a, b\)"),
        ({"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, None, "is for Stable Diffusion XL"),
        ("no", None, "There is no textual inversion at no"),
        ("no.pt", None, "There is no textual inversion at no.pt"),
        (torch.ones(1, 32) * float("nan"), "<rex>", "not finite"),
        (torch.ones(1).expand(10**7, 32), "<rex>", r"is \(10000000, 32\)"),
        ([torch.ones(1, 32), torch.ones(1, 32)], ["<rex>"], "1 tokens for 2"),
        (torch.ones(1, 32), None, "has the word None"),
        ({7: torch.ones(1, 32), "name": 3}, 5, "has the word 5"),
    ],
)
def test_words_that_cannot_be_loaded(
    fresh: Callable[[], Any], draw: Draw, given: Any, token: Any, sentence: str
) -> None:
    pipe = fresh()
    plain, words = draw(pipe), len(pipe.tokenizer)
    with pytest.raises(BlipDiffusionError, match=sentence) as caught:
        pipe.load_textual_inversion(given, token)
    assert "\n" not in str(caught.value)
    assert len(pipe.tokenizer) == words and torch.equal(draw(pipe), plain)

"""User LoRAs: key formats, weights, fusing, and files that are refused."""

import json
import math
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

from blip_diffusion.errors import CheckpointError
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline
from blip_diffusion.pipelines.presets import Preset

from .sampling import Sample

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of the libraries' own
State = dict[str, Tensor]
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def random_lora(pipe: BlipDiffusionPipeline, *, unet: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> State:
    """Return a random LoRA with PEFT's names; it stays on the pipeline's components."""
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
    """Return only the attention layers of the U-Net, with the first names of diffusers."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn" in name:
            layer, half = name.split(".lora_")
            projection = layer.rpartition(".")[2] if not layer.endswith(".0") else "to_out"
            where = layer.removesuffix(f".{projection}").removesuffix(".to_out.0")
            renamed[f"{where}.processor.{projection}_lora.{'down' if half[0] == 'A' else 'up'}.weight"] = tensor
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
def test_lora_key_formats_give_the_same_image(
    load_pipeline: Callable[[], Any], sample: Sample, tmp_path: Path, write: Callable[[State], State], layers: dict
) -> None:
    tuned, other = load_pipeline(), load_pipeline()
    save_file(
        {n: t.contiguous() for n, t in write(random_lora(tuned, **layers)).items()}, tmp_path / "lora.safetensors"
    )
    plain = sample(other)
    other.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="style")
    assert torch.equal(sample(other), sample(tuned))
    assert (sample(other) - plain).abs().max() > 1e-3
    other.unload_lora_weights()
    assert torch.equal(sample(other), plain)


def test_lora_saved_by_diffusers_is_loaded(load_pipeline: Callable[[], Any], sample: Sample, tmp_path: Path) -> None:
    tuned, other = load_pipeline(), load_pipeline()
    state = {name.removeprefix("unet."): tensor for name, tensor in random_lora(tuned, unet=ATTENTION).items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=convert_state_dict_to_diffusers(state))
    other.load_lora_weights(tmp_path)
    assert torch.equal(sample(other), sample(tuned))


def test_adapter_weights_of_two_loras(load_pipeline: Callable[[], Any], sample: Sample) -> None:
    pipe, state = load_pipeline(), random_lora(load_pipeline(), **BOTH)
    pipe.load_lora_weights(state, adapter_name="one")
    alone = sample(pipe)
    pipe.load_lora_weights(state, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.5, 0.5])
    torch.testing.assert_close(sample(pipe), alone, atol=1e-4, rtol=0)
    pipe.set_adapters(["one", "two"], [0.0, 0.0])
    torch.testing.assert_close(sample(pipe), sample(load_pipeline()), atol=1e-6, rtol=0)


def test_fused_lora_generates_the_same_image(load_pipeline: Callable[[], Any], sample: Sample) -> None:
    """Cached encodings are not used after fusing."""
    pipe, state = load_pipeline(), random_lora(load_pipeline(), **BOTH)
    plain = sample(pipe)
    pipe.load_lora_weights(state, adapter_name="style")
    with_style = sample(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    torch.testing.assert_close(sample(pipe), with_style, atol=1e-4, rtol=0)
    assert (with_style - plain).abs().max() > 1e-3
    other = load_pipeline()
    other.load_lora_weights(state, adapter_name="style")
    other.fuse_lora()
    torch.testing.assert_close(sample(other), with_style, atol=1e-4, rtol=0)
    other.unfuse_lora()
    other.disable_lora()
    torch.testing.assert_close(sample(other), plain, atol=1e-4, rtol=0)


def test_deleting_an_adapter_activates_no_other(load_pipeline: Callable[[], Any], sample: Sample) -> None:
    pipe, state = load_pipeline(), random_lora(load_pipeline(), **BOTH)
    plain = sample(pipe)
    for name in ("one", "two"):
        pipe.load_lora_weights(state, adapter_name=name)
    pipe.delete_adapters("two")
    assert pipe.get_active_adapters() == [] and torch.equal(sample(pipe), plain)


def wider(state: State) -> State:
    """Return the LoRA with a text width of 99."""
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
def test_lora_of_another_model_is_refused(
    load_pipeline: Callable[[], Any], sample: Sample, change: Callable[[State], State], message: str
) -> None:
    pipe, state = load_pipeline(), random_lora(load_pipeline(), **BOTH)
    plain = sample(pipe)
    with pytest.raises(CheckpointError, match=rf"^The LoRA is for another model: .*{message}") as caught:
        pipe.load_lora_weights(change(state))
    assert "\n" not in str(caught.value)
    assert pipe.get_list_adapters() == {} and torch.equal(sample(pipe), plain)
    assert not any("lora" in name for part in (pipe.unet, pipe.text_encoder) for name in part.state_dict())
    pipe.load_lora_weights(state)  # and the right one still can be loaded
    assert not torch.equal(sample(pipe), plain)


def test_name_taken_in_one_component_changes_neither(load_pipeline: Callable[[], Any], sample: Sample) -> None:
    """If the second component refuses a LoRA, it is removed from the first one."""
    pipe, state = load_pipeline(), random_lora(load_pipeline(), **BOTH)
    pipe.load_lora_weights({n: t for n, t in state.items() if n.startswith("text_encoder")}, adapter_name="style")
    before = sample(pipe)
    with pytest.raises(CheckpointError, match=r"The LoRA can't be loaded: .*style already exists"):
        pipe.load_lora_weights(state, adapter_name="style")
    assert pipe.get_list_adapters() == {"text_encoder": ["style"]} and torch.equal(sample(pipe), before)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "broken.safetensors", "harm.bin"])
def test_unreadable_lora_files_are_refused(load_pipeline: Callable[[], Any], tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    torch.save({"harm": tmp_path}, tmp_path / "harm.bin")
    with pytest.raises(CheckpointError, match=r"The LoRA can't be read|There is no LoRA at|it is refused"):
        load_pipeline().load_lora_weights(tmp_path / name)


LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


@pytest.mark.parametrize(
    ("part", "kind"),
    [("hada_w1_a", "a LoHa"), ("lokr_w1", "a LoKr"), ("lora_mid.weight", "a LoCon"), ("diff", "a full difference")],
)
def test_other_adapter_types_are_refused(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, part: str, kind: str
) -> None:
    state = {f"{LAYER}.{part}": torch.zeros(4, 4), f"{LAYER}.alpha": torch.tensor(1.0)}
    save_file(state, tmp_path / "other.safetensors")
    torch.save(state, tmp_path / "other.pt")
    for given in (state, tmp_path / "other.safetensors", tmp_path / "other.pt"):
        with pytest.raises(CheckpointError, match=f"it is {kind}"):
            fresh_pipe.load_lora_weights(given)


def test_peft_folders_and_subject_files_are_refused_as_lora(fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, tmp_path / "rex.safetensors", metadata={"blip-diffusion": "{}"})
    with pytest.raises(CheckpointError, match="a folder of PEFT's save_pretrained"):
        fresh_pipe.load_lora_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"a tuned subject, not a LoRA: use pipe\.load_subject"):
        fresh_pipe.load_lora_weights(tmp_path / "rex.safetensors")


@pytest.mark.parametrize("name", ["gone.safetensors", "gone.pt", "gone", "./gone/lora", "folder/gone"])
def test_missing_paths_cause_no_network_access(
    fresh_pipe: BlipDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    for load in (
        fresh_pipe.load_lora_weights,
        fresh_pipe.load_textual_inversion,
        BlipDiffusionPipeline.from_pretrained,
    ):
        with pytest.raises(CheckpointError, match=f"There is no .*{name}"):
            load(name)
    with pytest.raises(CheckpointError, match=f"There is no AutoencoderTiny at {name}"):
        fresh_pipe.set_preset(Preset(tiny_vae=name))


HEADERS = {
    "unet.r": [None, 0, "4", [4], 10**9, True, {"a": 1}],
    "unet.use_dora": [True, "x", [1]],
    "unet.lora_bias": [True, [None]],
    "unet.megatron_config": [-1, {"tensor_model_parallel_size": 2}],
    "unet.layers_to_transform": [[99], "x"],
    "unet.modules_to_save": [["conv_in"], "conv_in"],
    "unet.target_modules": [["conv_in"], "conv_in", [], None],
    "unet.rank_pattern": [{"to_q": 10**9}, {}],
    "unet.init_lora_weights": ["pissa", "eva", -1],
    "unet.peft_type": ["LOHA", 3],
    "unet.layer_replication": [[[0, 1]]],
    "x": [None],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in HEADERS.items() for value in values])
def test_settings_of_a_lora_are_those_of_its_tensors(
    load_pipeline: Callable[[], Any], tmp_path: Path, dog: Image.Image, key: str, value: object
) -> None:
    state = random_lora(load_pipeline(), unet=("to_q",))
    header = {"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": ["to_q"]}
    images, refused = [], False
    for name, table in (("plain", header), ("changed", {**header, key: value})):
        save_file(state, tmp_path / f"{name}.safetensors", metadata={"lora_adapter_metadata": json.dumps(table)})
        pipe = load_pipeline()
        try:
            pipe.load_lora_weights(tmp_path / f"{name}.safetensors")
        except CheckpointError as error:
            refused = f"header has a '{key}' that can't be used" in str(error)
        noise = torch.Generator().manual_seed(0)
        images.append(pipe("x", dog, "dog", num_inference_steps=1, generator=noise, output_type="pt").images)
    assert refused or torch.equal(*images)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("unet.lora_alpha", alpha) for alpha in (0, -1, 1e30, math.inf, math.nan, "4", [4], True)),
        *(("unet.alpha_pattern", pattern) for pattern in ({"to_q": math.nan}, {"to_q": -1}, {"to_q": "x"}, [1])),
        ("unet.alpha_pattern", {"(.*.*)*z": 3}),
        ("unet.use_rslora", "true"),
    ],
)
def test_scales_of_a_lora_are_positive_numbers(
    load_pipeline: Callable[[], Any], tmp_path: Path, key: str, value: object
) -> None:
    pipe = load_pipeline()
    header = json.dumps({"unet.r": 4, "unet.lora_alpha": 4, key: value})
    path = tmp_path / "a.safetensors"
    save_file(random_lora(pipe, unet=("to_q",)), path, metadata={"lora_adapter_metadata": header})
    with pytest.raises(CheckpointError, match=r"has the alpha|that can't be used"):
        pipe.load_lora_weights(path)


def test_scales_of_single_layers_are_kept(load_pipeline: Callable[[], Any], tmp_path: Path) -> None:
    pipe = load_pipeline()
    state = random_lora(pipe, unet=("to_q",))
    layer = next(iter(state)).removeprefix("unet.").partition(".lora_")[0]
    header = {"unet.r": 4, "unet.lora_alpha": 4, "unet.alpha_pattern": {layer: 8}}
    path = tmp_path / "a.safetensors"
    save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(header)})
    pipe.load_lora_weights(path, adapter_name="a")
    scales = {name: module.scaling["a"] for name, module in pipe.unet.named_modules() if hasattr(module, "scaling")}
    assert scales.pop(layer) == 2 * next(iter(scales.values()))


@pytest.mark.parametrize("suffix", [".lora_magnitude_vector", ".lora_B.bias"])
@pytest.mark.parametrize("vector", [torch.ones(3), torch.tensor(1.0), torch.full((32,), math.nan)])
def test_vectors_of_a_lora_are_checked(load_pipeline: Callable[[], Any], suffix: str, vector: torch.Tensor) -> None:
    pipe = load_pipeline()
    state = random_lora(pipe, unet=("to_q",))
    layer = next(iter(state)).partition(".lora_")[0]
    with pytest.raises(CheckpointError, match=r"of another shape|not finite"):
        pipe.load_lora_weights({**state, f"{layer}{suffix}": vector})


def test_untrusted_lora_metadata_is_refused(load_pipeline: Callable[[], Any], tmp_path: Path) -> None:
    state = random_lora(load_pipeline(), unet=("to_q",))
    header = {"unet.r": 4, "unet.lora_alpha": 4, "unet.target_modules": "(.*.*)*(.*.*)*z"}
    save_file(state, tmp_path / "regex.safetensors", metadata={"lora_adapter_metadata": json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"header has a 'unet\.target_modules'"):
        load_pipeline().load_lora_weights(tmp_path / "regex.safetensors")
    name = next(iter(state))
    with pytest.raises(CheckpointError, match="not finite"):
        load_pipeline().load_lora_weights({**state, name: state[name] * float("nan")})
    with pytest.raises(CheckpointError, match="has the alpha nan"):
        load_pipeline().load_lora_weights({f"{LAYER}.lora_down.weight": torch.zeros(4, 32),
                                   f"{LAYER}.lora_up.weight": torch.zeros(32, 4),
                                   f"{LAYER}.alpha": torch.tensor(float("nan"))})  # fmt: skip

"""LoRAs and words merged into a model give what a pipeline draws that has loaded them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from blip_diffusion.checkpoint.adapter_refs import embedding_ref, lora_ref
from blip_diffusion.checkpoint.merge import merge_adapters
from blip_diffusion.checkpoint.textual_inversion import add_word
from blip_diffusion.errors import CheckpointError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.pipelines.pipeline import BlipDiffusionPipeline


def lora_file(model: BlipDiffusion, path: Path) -> Path:
    """One of the U-Net and the text encoder, rank 2, alpha 4."""
    torch.manual_seed(0)
    state, alphas = {}, {}
    for part, ending in ("unet", "attn1.to_q"), ("text_encoder", "q_proj"):
        name, layer = next((n, m) for n, m in getattr(model, part).named_modules() if n.endswith(ending))
        state[f"{part}.{name}.lora_A.weight"] = torch.randn(2, layer.weight.shape[1])
        state[f"{part}.{name}.lora_B.weight"] = torch.randn(layer.weight.shape[0], 2)
        alphas[f"{part}.{name}.alpha"] = torch.tensor(4.0)
    save_file(state, path)
    return path


def test_merged_equals_loaded(model: BlipDiffusion, fresh_pipe: BlipDiffusionPipeline, tmp_path: Path) -> None:
    lora = lora_file(model, tmp_path / "style.safetensors")
    save_file({"<rex>": torch.randn(3, 32)}, tmp_path / "rex.safetensors")
    names = list(model.state_dict())
    merge_adapters(model, [lora_ref(lora, 0.5)], [embedding_ref(tmp_path / "rex.safetensors")])
    assert list(model.state_dict()) == names
    fresh_pipe.load_lora_weights(lora, adapter_name="style")
    fresh_pipe.set_adapters("style", 0.5)
    fresh_pipe.load_textual_inversion(tmp_path / "rex.safetensors")
    latents, time = torch.randn(1, 4, 8, 8)[:, : fresh_pipe.unet.config.in_channels], torch.tensor(5)
    with torch.no_grad():
        ours = model.text_states(["a <rex> on the beach"])
        theirs = fresh_pipe.model.text_states(["a <rex> <rex>_1 <rex>_2 on the beach"])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        outputs = [unet(latents, time, theirs).sample for unet in (model.unet, fresh_pipe.unet)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("word", "width", "sentence"), [("dog", 31, "32 wide: its own are 31"), ("a</w>", 32, "knows the word")]
)
def test_words_that_cannot_be_added(model: BlipDiffusion, word: str, width: int, sentence: str) -> None:
    words = len(model.tokenizer)
    with pytest.raises(CheckpointError, match=sentence):
        add_word(model.tokenizer, model.text_encoder, word, torch.zeros(1, width))
    assert len(model.tokenizer) == words

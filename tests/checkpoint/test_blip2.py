"""BLIP-2's folders against transformers' own classes, on tiny random weights: numbers and files, both directions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    CLIPTokenizer,
)

from blip_diffusion.blip2 import Blip2
from blip_diffusion.checkpoint.blip2 import load_blip2, save_blip2, write_lavis_blip2
from blip_diffusion.errors import CheckpointError, InputError
from blip_diffusion.images import preprocess

QUERIES, IMAGE_TOKEN, BOS, EOS = 4, 90, 2, 3
OPT = {"model_type": "opt", "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2,
       "num_attention_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "bos_token_id": BOS,
       "eos_token_id": EOS, "pad_token_id": 1}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 96,
      "eos_token_id": EOS, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": BOS,
      "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "tie_word_embeddings": False}  # fmt: skip


def config(text: dict[str, Any], image_token: int | None = IMAGE_TOKEN) -> Blip2Config:
    return Blip2Config(
        vision_config={"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 28, "patch_size": 14, "initializer_range": 0.2},
        qformer_config={"hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 4, "num_attention_heads": 2,
                        "vocab_size": 60, "max_position_embeddings": 40, "cross_attention_frequency": 2,
                        "encoder_hidden_size": 24, "use_qformer_text_input": text is RETRIEVAL,
                        "initializer_range": 0.2},
        text_config={} if text is RETRIEVAL else text,
        num_query_tokens=QUERIES,
        image_text_hidden_size=12,
        image_token_index=image_token,
    )  # fmt: skip


RETRIEVAL: dict[str, Any] = {}


def random_weights(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each kind, as transformers writes it, with the tokenizer that it needs."""
    root = tmp_path_factory.mktemp("blip2")
    letters = {letter: i for i, letter in enumerate(["<pad>", "<x>", "<s>", "</s>", *"abcdefghijklmnop"])}
    for name, text in (("opt", OPT), ("t5", T5), ("old", OPT)):
        made = Blip2ForConditionalGeneration(config(text, None if name == "old" else IMAGE_TOKEN))
        random_weights(made).save_pretrained(root / name)
        CLIPTokenizer(vocab=letters, merges=[], bos_token="<s>", eos_token="</s>", unk_token="<x>",
                      pad_token="<pad>").save_pretrained(root / name)  # fmt: skip
    random_weights(Blip2ForImageTextRetrieval(config(RETRIEVAL))).save_pretrained(root / "retrieval")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "on", "the", "beach"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(root / "retrieval")
    return {name: root / name for name in ("opt", "t5", "old", "retrieval")}


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))


def seen(model: Blip2, pixels: torch.Tensor) -> torch.Tensor:
    """The pixels as transformers' processor would give them."""
    return preprocess(pixels, model.reference.size, model.reference.mean, model.reference.std)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


TEXT = torch.tensor([[BOS, 10, 11, 12, EOS], [BOS, 13, 14, EOS, 1], [BOS, 15, EOS, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])


@torch.no_grad()
@pytest.mark.parametrize("name", ["opt", "t5"])
def test_queries_logits_loss_and_greedy_ids_are_transformers(
    folders: dict[str, Path], pixels: torch.Tensor, name: str
) -> None:
    own, theirs = load_blip2(folders[name]), Blip2ForConditionalGeneration.from_pretrained(folders[name]).eval()
    image = seen(own, pixels)
    queries = own.queries(own.features(pixels))
    close(queries, theirs.get_image_features(image).qformer_outputs.last_hidden_state)
    ids = torch.cat([torch.full((3, QUERIES), IMAGE_TOKEN), TEXT], dim=1)
    mask = torch.cat([torch.ones(3, QUERIES, dtype=torch.long), MASK], dim=1)
    labels = TEXT.masked_fill(MASK == 0, -100)
    padded = labels if name == "t5" else torch.nn.functional.pad(labels, (QUERIES, 0), value=-100)
    expected = theirs(pixel_values=image, input_ids=ids, attention_mask=mask, labels=padded)
    found = own.language_prefix(queries, TEXT, MASK, labels)
    close(found.logits, expected.logits)
    close(found.loss, expected.loss)
    begin = torch.full((3, 1), BOS)
    options = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}
    written = own.language_prefix.generate(queries, begin, torch.ones_like(begin), **options)
    there = theirs.generate(image, **options)
    assert torch.equal(written, there if name == "t5" else there[:, QUERIES + 1 :])


@torch.no_grad()
def test_contrast_and_matching_are_transformers(folders: dict[str, Path], pixels: torch.Tensor) -> None:
    own = load_blip2(folders["retrieval"])
    theirs = Blip2ForImageTextRetrieval.from_pretrained(folders["retrieval"]).eval()
    image, words = seen(own, pixels), own.sentence_words(["a dog", "a cat on the beach", "the beach"])
    ids = torch.cat([torch.full((3, QUERIES), IMAGE_TOKEN), words.input_ids], dim=1)
    mask = torch.cat([torch.ones(3, QUERIES, dtype=torch.long), words.attention_mask], dim=1)
    features = own.features(pixels)
    itm = theirs(image, ids, mask, use_image_text_matching_head=True).logits_per_image
    close(own.itm(features, words), itm)
    itc = theirs(image, ids, mask, use_image_text_matching_head=False).logits_per_image
    close(own.itc(own.image_vectors(features), own.sentence_vectors(words)), itc)


@pytest.mark.parametrize("name", ["opt", "t5", "old", "retrieval"])
def test_a_folder_goes_both_ways(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    kind = Blip2ForImageTextRetrieval if name == "retrieval" else Blip2ForConditionalGeneration
    save_blip2(load_blip2(folders[name]), tmp_path / name)
    before, after = kind.from_pretrained(folders[name]), kind.from_pretrained(tmp_path / name)
    assert before.state_dict().keys() == after.state_dict().keys()
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[key]), key
    assert after.config.image_token_index == (None if name == "old" else IMAGE_TOKEN)
    again = load_blip2(tmp_path / name)
    assert (again.tokenizer or again.qformer_tokenizer).get_vocab() == (
        load_blip2(folders[name]).tokenizer or load_blip2(folders[name]).qformer_tokenizer
    ).get_vocab()


@pytest.mark.parametrize("tower", [True, False])
@pytest.mark.parametrize("name", ["opt", "t5", "retrieval"])
def test_lavis_files_go_both_ways(folders: dict[str, Path], tmp_path: Path, name: str, tower: bool) -> None:
    own = load_blip2(folders[name])
    with torch.no_grad():
        for part, parameter in own.named_parameters():
            if part.endswith("qkv.bias"):
                parameter.view(3, -1)[1].zero_()  # LAVIS has no bias of the keys
            elif tower or not part.startswith(("image_encoder.tower.", "language.language_model.")):
                parameter.add_(0.01 if not part.startswith("language.language_model.") else 0)
    write_lavis_blip2(own, tmp_path / "own.pth", tower=tower)
    names = torch.load(tmp_path / "own.pth", weights_only=True)["model"].keys()
    assert {"ln_vision.weight", "query_tokens", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"} <= names
    assert ("visual_encoder.blocks.1.attn.q_bias" in names) == tower
    expected = {"opt": "opt_proj.weight", "t5": "t5_proj.weight", "retrieval": "temp"}[name]
    assert expected in names and not [n for n in names if "model" in n]
    read = load_blip2(tmp_path / "own.pth", base=folders[name])
    assert read.image_encoder.norm.eps == 1e-5
    assert read.has_temperature and not load_blip2(folders[name]).has_temperature  # which transformers leaves out
    for key, tensor in own.state_dict().items():
        if tower or not key.endswith("qkv.bias"):
            assert torch.equal(tensor, read.state_dict()[key]), key


def test_what_does_not_fit_is_named(folders: dict[str, Path], tiny_folder: Path, tmp_path: Path) -> None:
    write_lavis_blip2(load_blip2(folders["opt"]), tmp_path / "opt.pth")
    with pytest.raises(CheckpointError, match="as base"):
        load_blip2(tmp_path / "opt.pth")
    with pytest.raises(CheckpointError, match="opt_proj"):
        load_blip2(tmp_path / "opt.pth", base=folders["t5"])
    with pytest.raises(InputError, match="leave it out"):
        load_blip2(folders["opt"], base=folders["opt"])
    with pytest.raises(CheckpointError, match="its own image encoder"):
        save_blip2(load_blip2(tiny_folder), tmp_path / "none")
    without_itm = load_blip2(folders["retrieval"])
    without_itm.matching = None
    with pytest.raises(CheckpointError, match="heads of ITC and of ITM, and this model has one"):
        save_blip2(without_itm, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no BLIP-2"):
        load_blip2(tmp_path / "empty")
    assert not (tmp_path / "none").exists()


def test_missing_parts_are_refused(tiny_folder: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="no language model"):
        load_blip2(tiny_folder).language_prefix  # noqa: B018
    with pytest.raises(CheckpointError, match="no heads"):
        load_blip2(folders["opt"]).itc_head  # noqa: B018

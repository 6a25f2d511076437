from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, T5ForConditionalGeneration

from blip_diffusion.checkpoint.language import load_language, load_language_model, save_language
from blip_diffusion.data.batches import SubjectBatch
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import CaptionSampler, PairSampler
from blip_diffusion.data.synthetic.pair_spec import SyntheticConfig
from blip_diffusion.errors import CheckpointError, ConfigError
from blip_diffusion.model import BlipDiffusion
from blip_diffusion.modules.language import IGNORED, LanguagePrefix, build_language_model
from blip_diffusion.prompts import SpecialIds, Words, caption_words
from blip_diffusion.training.objectives.language import LanguageConfig, LanguageStage, blip2_of
from blip_diffusion.training.objectives.sentences import (
    Sentences,
    SentencesConfig,
    context_accuracy,
    with_context,
    with_noise,
)
from blip_diffusion.training.pooled_batches import PooledBatches
from blip_diffusion.training.pretrain import run
from blip_diffusion.training.shapes import LANGUAGE_MODELS

from .overfit import context, ids, moved_parameters, overfit, with_gradient

CONFIGS = Path(__file__).parents[3] / "configs" / "debug"


def causal(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    return build_language_model(LANGUAGE_MODELS["tiny"], bos=tokenizer.bos_token_id, eos=end, pad=end)


def encoder_decoder(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    return T5ForConditionalGeneration(
        T5Config(vocab_size=1024, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, eos_token_id=end,
                 pad_token_id=end, decoder_start_token_id=end)
    )  # fmt: skip


def stage(model: BlipDiffusion, make: Any, **config: Any) -> LanguageStage:
    encoder = model.subject_encoder
    prefix = LanguagePrefix(encoder.qformer.config.width, make(model.tokenizer))
    parts = {"tokenizer": model.tokenizer, "qformer_tokenizer": model.qformer_tokenizer, "reference": model.reference}
    return LanguageStage(encoder, blip2_of(encoder, prefix, **parts), LanguageConfig(**config))


@pytest.mark.parametrize("make", [causal, encoder_decoder])
def test_the_loss_falls_while_the_language_model_stays(model: BlipDiffusion, batch: SubjectBatch, make: Any) -> None:
    own = stage(model, make)
    before = {name: value.clone() for name, value in own.language.language_model.state_dict().items()}
    first, last = overfit(own, batch, steps=12, lr=2e-2)
    assert last < first
    assert not own.language.language_model.training and not own.blip2.image_encoder.tower.training
    for name, value in own.language.language_model.state_dict().items():
        assert torch.equal(value, before[name])


def test_everything_that_moves_has_a_gradient_and_nothing_is_of_words(
    model: BlipDiffusion, batch: SubjectBatch
) -> None:
    own = stage(model, causal)
    own(batch, context())["loss"].backward()
    groups = [parameter for group in own.parameter_groups() for parameter in group.parameters]
    assert all(with_gradient(groups))
    frozen = [*own.language.language_model.parameters(), *own.blip2.image_encoder.tower.parameters(),
              *own.blip2.qformer.word_embeddings.parameters()]  # fmt: skip
    assert not ids(frozen) & moved_parameters(own)


def test_the_prompt_is_no_target(model: BlipDiffusion) -> None:
    own = stage(model, causal, prompt="a photo of")
    _, labels = own._unsplit(["a dog on the beach"])
    plain, all_labels = stage(model, causal)._unsplit(["a dog on the beach"])
    hidden = 1 + len(model.tokenizer("a photo of", add_special_tokens=False).input_ids)
    assert labels[0, :hidden].tolist() == [-100] * hidden and (labels[0, hidden:] >= 0).all()
    assert all_labels[0].tolist() == plain.input_ids[0].tolist()
    assert plain.input_ids[0, 0] == model.tokenizer.bos_token_id
    assert plain.input_ids[0, -1] == model.tokenizer.eos_token_id


def test_an_encoder_decoder_reads_the_first_words_and_writes_the_others(model: BlipDiffusion) -> None:
    own, tokenizer = stage(model, encoder_decoder), model.tokenizer
    seen = set()
    for seed in range(12):
        read, labels = own._split(["a dog on the beach"], torch.Generator().manual_seed(seed))
        first = tokenizer.decode(read.input_ids[0], skip_special_tokens=True).strip()
        second = tokenizer.decode(labels[0][labels[0] >= 0], skip_special_tokens=True).strip()
        assert f"{first} {second}".strip() == "a dog on the beach" and second
        seen.add(first)
    assert len(seen) > 2 and "" in seen


def test_captions_alone_are_those_of_the_pairs(world: AssetLibrary) -> None:
    pairs = PairSampler(world, SyntheticConfig(size=32, object_crop_size=16), batch_size=4, seed=3)
    assert CaptionSampler(pairs)(5)["caption"] == pairs(5)["caption"]


@pytest.mark.parametrize("config", [{}, {"context_tokens": 6}, {"context_tokens": 6, "context_noise": 2.0}])
def test_a_language_model_learns_sentences(model: BlipDiffusion, batch: SubjectBatch, config: dict[str, Any]) -> None:
    own = Sentences(causal(model.tokenizer), model.tokenizer, SentencesConfig(**config))
    before, after = overfit(own, batch, steps=30, lr=1e-2)
    assert after < 0.5 * before


def test_a_context_has_only_tokens_of_its_caption(model: BlipDiffusion, batch: SubjectBatch) -> None:
    special = SpecialIds.of(causal(model.tokenizer).config)
    words, _ = caption_words(model.tokenizer, batch["caption"], special, limit=32)
    longer = with_context(words, special, 6, torch.Generator().manual_seed(0))
    assert torch.equal(longer.input_ids[:, 6:], words.input_ids)
    assert torch.equal(longer.attention_mask[:, 6:], words.attention_mask)
    for row, ids_of_row in enumerate(longer.input_ids[:, :6].tolist()):
        caption = model.tokenizer(batch["caption"][row], add_special_tokens=False).input_ids
        assert {*ids_of_row} <= {*caption}
    shares = longer.attention_mask[:, :6].float().mean(1)
    assert shares.max() == 1 and shares.min() < 1


def test_context_accuracy_is_of_the_tokens_that_the_context_shows() -> None:
    """The second token of the context is masked, so the wrong prediction of 8 does not count."""
    words = Words(torch.tensor([[7, 8, 1, 7, 8, 7]]), torch.tensor([[1, 0, 1, 1, 1, 1]]))
    labels = torch.tensor([[IGNORED, IGNORED, 1, 7, 8, 7]])
    predicted = torch.tensor([[0, 0, 7, 0, 0, 0]])  # each of the next token
    accuracy = context_accuracy(F.one_hot(predicted, 10).float(), labels, words, 2)
    assert accuracy == 0.5


def test_noise_on_the_context_changes_the_loss(model: BlipDiffusion, batch: SubjectBatch) -> None:
    losses = [
        Sentences(causal(model.tokenizer), model.tokenizer, SentencesConfig(context_tokens=6, context_noise=noise))(
            batch, context()
        )["loss"]
        for noise in (0.0, 5.0)
    ]
    assert not torch.equal(*losses)


def test_only_a_context_gets_noise_and_each_row_its_own_share() -> None:
    embeds = torch.randn(64, 9, 16, generator=torch.Generator().manual_seed(1)) * 3
    noisy = with_noise(embeds, 4, 2.0, torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, 4:], embeds[:, 4:])
    shares = (noisy - embeds)[:, :4].flatten(1).std(1) / embeds.std()
    assert shares.min() < 0.3 and 1.5 < shares.max() < 2.4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"context_tokens": -1}, "context_tokens is -1"),
        ({"context_tokens": 4, "context_noise": -1.0}, "context_noise is -1"),
        ({"context_tokens": 4, "context_noise": float("nan")}, "context_noise is nan"),
        ({"context_noise": 1.0}, "needs sentences.context_tokens"),
    ],
)
def test_absurd_contexts_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SentencesConfig(**config)


def test_the_debug_runs_follow_each_other(tmp_path: Path, tiny_folder: Path) -> None:
    run(CONFIGS / "sentences.toml", tmp_path / "sentences", overrides=["train.steps=3"])
    folders = f'model.init_from=["{tiny_folder}","{tmp_path}/sentences/export"]'
    overrides = [folders, "train.steps=2", "train.save_every=1", "model.queries=2"]
    run(CONFIGS / "language.toml", tmp_path / "language", overrides=overrides)
    out = tmp_path / "language" / "export"
    prefix, _ = load_language(out / "language", 32)
    kept, _ = load_language_model(tmp_path / "sentences" / "export" / "language")
    for name, value in kept.state_dict().items():
        assert torch.equal(prefix.language_model.state_dict()[name], value)
    checkpoint = max((tmp_path / "language" / "checkpoints").iterdir())
    from blip_diffusion.checkpoint.weights import read_file

    assert not [name for name in read_file(checkpoint / "model.safetensors") if "language_model" in name]


def test_a_large_language_model_is_named_and_not_copied(model: BlipDiffusion, tmp_path: Path) -> None:
    save_language(causal(model.tokenizer), model.tokenizer, tmp_path / "lm")
    own = stage(model, causal, language_model=tmp_path / "lm")
    own.export(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/language").iterdir()) == [
        "projection.safetensors", "source.json"
    ]  # fmt: skip
    loaded, _ = load_language(tmp_path / "out/language", 32)
    assert torch.equal(loaded.projection.weight, own.language.projection.weight)
    (tmp_path / "lm/model.safetensors").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="no longer the one"):
        load_language(tmp_path / "out/language", 32)


def test_a_language_stage_needs_a_language_model(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"language\.language_model"):
        run(CONFIGS / "language.toml", tmp_path, overrides=[f'model.init_from=["{tiny_folder}"]'])
    with pytest.raises(ConfigError, match="max_caption_tokens"):
        LanguageConfig(max_caption_tokens=1)


def test_a_share_of_the_captions_is_the_category_alone(model: BlipDiffusion, batch: SubjectBatch) -> None:
    short = cast(SubjectBatch, {**batch, "caption": [f"a {category}" for category in batch["category"]]})
    own, plain = stage(model, causal, category_captions=1.0).train(), stage(model, causal)
    queries = plain.blip2.queries(plain.blip2.image_encoder.norm(plain.encode(batch)["features"]))
    cut = plain.loss(queries, short["caption"], context().rng, shortened=[True] * len(short["caption"]))
    assert torch.equal(own(batch, context())["loss"], cut)
    assert torch.equal(own.eval()(batch, context())["loss"], plain(batch, context())["loss"])
    assert not torch.equal(plain(short, context())["loss"], plain(batch, context())["loss"])


@pytest.mark.parametrize("make", [causal, encoder_decoder])
def test_the_end_of_a_shortened_caption_is_no_target(
    model: BlipDiffusion, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, seen = stage(model, make), []

    def keep(queries: Any, ids: Any, mask: Any, labels: torch.Tensor) -> Any:
        seen.append(labels)
        return SimpleNamespace(loss=labels.float().mean())

    monkeypatch.setattr(own.blip2.language_prefix, "forward", keep)
    captions, shortened = ["a dog", "a dog"], [True, False]
    own.loss(None, captions, torch.Generator().manual_seed(0), shortened=shortened)
    own.loss(None, captions, torch.Generator().manual_seed(0))
    with_cut, without = seen
    ends = without == own.blip2.special.eos
    assert ends.sum(1).tolist() == [1, 1]
    assert torch.equal(with_cut != without, ends & torch.tensor(shortened)[:, None])
    assert (with_cut[0][ends[0]] == IGNORED).all()


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_what_is_computed_once_gives_the_same_loss(model: BlipDiffusion, batch: SubjectBatch, scale: float) -> None:
    own = stage(model, causal, qformer_lr_scale=scale).train()
    calls = []

    def compose(index: int) -> SubjectBatch:
        calls.append(index)
        return batch

    pool = PooledBatches(compose, own.encode, 1)
    for index in (0, 1, 2, 5):
        torch.testing.assert_close(own(pool(index), context())["loss"], own(batch, context())["loss"])
    assert calls == [0]
    own(pool(0), context())["loss"].backward()
    assert all(with_gradient(parameter for group in own.parameter_groups() for parameter in group.parameters))
    assert [group.name for group in own.parameter_groups()] == (["qformer", "projection"] if scale else ["projection"])

"""Tokenizers for a closed world: every word that its captions hold is one token, and any other is spelled out."""

from collections.abc import Iterable
from typing import Any

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import sentences
from blip_diffusion.data.synthetic.prompt_templates import caption

REPEATS = 20
"""How often a template's sentence counts against one mention of a rare name: its words must not be split."""


def tokenizer_corpus(world: AssetLibrary) -> list[str]:
    """Return the sentences that the tokenizers of a library are trained on."""
    names = [caption(row.name, "") for row in world.cutouts]
    return [sentence for sentence in sentences(world) for _ in range(REPEATS)] + names


def prompt_tokenizer(corpus: Iterable[str], size: int, positions: int) -> Any:
    """Train a byte-pair encoding in CLIP's form (Radford et al. 2021): lower case, `</w>`, `size` tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    specials = ["<|startoftext|>", "<|endoftext|>"]
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=specials[1]))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(specials),
        initial_alphabet=bytes_,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[f"{byte}</w>" for byte in bytes_],
    )
    learner.train_from_iterator(corpus, trainer)
    tokens = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {token: index for index, (token, _) in enumerate(tokens)}
    for special in specials:
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=_merges(learner), model_max_length=positions)


def category_tokenizer(corpus: Iterable[str], size: int) -> Any:
    """Train a WordPiece vocabulary in BERT's form, with `[DEC]`, which begins a generated sentence."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = list(corpus)
    letters = sorted({sign for line in set(corpus) for sign in learner.normalizer.normalize_str(line) if sign.strip()})
    # Named in order, because the trainer would name them in the order of a hash table, which is another each time.
    specials += [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, initial_alphabet=letters, special_tokens=specials, show_progress=False
    )
    learner.train_from_iterator(corpus, trainer)
    tokens = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(vocab={token: index for index, (token, _) in enumerate(tokens)}, bos_token="[DEC]")


def _merges(learner: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]

"""Tokenizers for a closed vocabulary: every word of the captions is one token, and others are split."""

from collections.abc import Iterable
from typing import Any

from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.pair_sampler import sentences
from blip_diffusion.data.synthetic.prompt_templates import caption
from blip_diffusion.strict_json import parse_json

REPEATS = 20
"""Weight of a template's sentence relative to a name, so that words of templates are not split."""


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
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=specials[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(specials),
        initial_alphabet=bytes_,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[f"{byte}</w>" for byte in bytes_],
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    vocabulary = {token: index for index, (token, _) in enumerate(tokens)}
    for special in specials:
        vocabulary[special] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=_merges(tokenizer), model_max_length=positions)


def category_tokenizer(corpus: Iterable[str], size: int) -> Any:
    """Train a WordPiece vocabulary in BERT's form, with `[DEC]`, which starts a generated caption."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import BertTokenizer

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    corpus = list(corpus)
    letters = sorted(
        {sign for line in set(corpus) for sign in tokenizer.normalizer.normalize_str(line) if sign.strip()}
    )
    # given in a fixed order, because the trainer's order is that of a hash table
    specials += [f"##{letter}" for letter in letters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, initial_alphabet=letters, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return BertTokenizer(vocab={token: index for index, (token, _) in enumerate(tokens)}, bos_token="[DEC]")


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in parse_json(tokenizer.to_str())["model"]["merges"]]

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blip_diffusion.data.synthetic import backgrounds, prompt_templates
from blip_diffusion.data.synthetic.assets import AssetLibrary
from blip_diffusion.data.synthetic.tokenizers import category_tokenizer, prompt_tokenizer, tokenizer_corpus


@pytest.fixture(scope="module")
def corpus(world: AssetLibrary) -> list[str]:
    return tokenizer_corpus(world)


@pytest.fixture(scope="module")
def prompts(corpus: list[str]) -> Any:
    return prompt_tokenizer(corpus, 2048, 32)


@pytest.fixture(scope="module")
def categories(corpus: list[str]) -> Any:
    return category_tokenizer(corpus, 2048)


@pytest.fixture(scope="module")
def words(world: AssetLibrary) -> tuple[str, ...]:
    scenes = [*backgrounds.phrases(), *(phrase for scene in world.scenes for phrase in scene.phrases)]
    return prompt_templates.vocabulary(scenes, [row.category for row in world.cutouts])


def test_every_word_is_one_token(prompts: Any, categories: Any, words: tuple[str, ...]) -> None:
    assert len(words) > 100
    for tokenizer in (prompts, categories):
        assert [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) != 1] == []


def test_special_tokens(prompts: Any, categories: Any) -> None:
    size = len(prompts.get_vocab())
    assert (prompts.bos_token_id, prompts.eos_token_id, prompts.pad_token_id) == (size - 2, size - 1, size - 1)
    assert prompts.model_max_length == 32
    assert prompts("dog").input_ids[0] == prompts.bos_token_id and prompts("dog").input_ids[-1] == prompts.eos_token_id
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    assert categories.pad_token_id == 0 and categories.convert_ids_to_tokens(range(6)) == first
    assert categories.bos_token == "[DEC]"
    assert categories.convert_ids_to_tokens(categories("dog").input_ids) == ["[CLS]", "dog", "[SEP]"]


def test_unknown_words_are_split_into_pieces(prompts: Any, categories: Any) -> None:
    assert prompts.decode(prompts("xylophonist", add_special_tokens=False).input_ids).strip() == "xylophonist"
    assert prompts.unk_token_id not in prompts("xylophonist £9 ünïcode 🐶", add_special_tokens=False).input_ids
    spelled = categories("xylophonist", add_special_tokens=False).input_ids
    assert len(spelled) > 1 and categories.unk_token_id not in spelled


def test_case_does_not_matter(prompts: Any, categories: Any) -> None:
    for tokenizer in (prompts, categories):
        assert tokenizer("A Dog On The BEACH").input_ids == tokenizer("a dog on the beach").input_ids


def test_sizes_are_kept(corpus: list[str]) -> None:
    assert len(prompt_tokenizer(corpus, 640, 32).get_vocab()) == 640
    assert len(category_tokenizer(corpus, 200).get_vocab()) == 200


def test_saved_tokenizer_is_the_same(prompts: Any, categories: Any, tmp_path: Path) -> None:
    from transformers import BertTokenizer, CLIPTokenizer

    for tokenizer, kind in ((prompts, CLIPTokenizer), (categories, BertTokenizer)):
        tokenizer.save_pretrained(tmp_path / kind.__name__)
        again = kind.from_pretrained(tmp_path / kind.__name__)
        assert again.get_vocab() == tokenizer.get_vocab()
        sentence = "a dog , small on the beach xylophonist"
        assert again(sentence).input_ids == tokenizer(sentence).input_ids
        assert again.bos_token_id == tokenizer.bos_token_id


def test_vocabulary_is_the_same_in_every_process(corpus: list[str], prompts: Any, categories: Any) -> None:
    """A resumed run builds its tokenizers anew: with other ids, its weights would mean other words."""
    code = (
        "import json, sys\n"
        "from blip_diffusion.data.synthetic.tokenizers import category_tokenizer, prompt_tokenizer\n"
        "corpus = json.load(sys.stdin)\n"
        "made = prompt_tokenizer(corpus, 2048, 32), category_tokenizer(corpus, 2048)\n"
        "print(json.dumps([tokenizer.get_vocab() for tokenizer in made]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(corpus), capture_output=True, text=True, check=True
    )
    assert json.loads(ended.stdout) == [prompts.get_vocab(), categories.get_vocab()]
    assert category_tokenizer(corpus, 2048).get_vocab() == categories.get_vocab()

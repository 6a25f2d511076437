"""Views of a report: what spreadsheets get."""

import pytest

from blip_diffusion.evaluation.reporting.write import plain_cell


@pytest.mark.parametrize("word", ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", " =1", "\t=1", "\r=1", "＝1+1"])
def test_a_formula_is_text(word: str) -> None:
    assert plain_cell(word) == f"'{word}"


@pytest.mark.parametrize("word", ["dog", "teddy bear", "a=b", "", "犬"])
def test_a_word_stays(word: str) -> None:
    assert plain_cell(word) == word

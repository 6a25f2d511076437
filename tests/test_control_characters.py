import pytest

from blip_diffusion.control_characters import check_text, first_control, print_json, print_text
from blip_diffusion.errors import InputError

ESCAPE = "\x1b]0;title\x07"


@pytest.mark.parametrize(
    "text", ["", "on the beach", "two\nlines\r\n\tand a tab", "雪の中 на пляже 👩‍🎨 naïve", "עברית\u200f"]
)
def test_text_of_any_language_is_accepted(text: str) -> None:
    check_text("prompt", text)
    assert first_control(text) == ""


@pytest.mark.parametrize("letter", ["\x00", "\x07", "\x08", "\x1b", "\x7f", "\x85", "\x9b"])
def test_control_characters_are_refused(letter: str) -> None:
    assert first_control(f"a dog {letter}[2J") == letter
    with pytest.raises(InputError) as caught:
        check_text("prompt", f"a dog {letter}[2J")
    assert str(caught.value) == f"The prompt has the control character {letter!r}: remove it."
    assert str(caught.value).isprintable()


def test_printed_text_has_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    print_text(f"{ESCAPE}\nblip-diffusion: all is well\x9b2J\u202e")
    assert capsys.readouterr().out == "\\x1b]0;title\\x07\\nblip-diffusion: all is well\\x9b2J\\u202e\n"
    print_text(f"| a |\n| {ESCAPE} |", lines=True)
    assert capsys.readouterr().out == "| a |\n| \\x1b]0;title\\x07 |\n"
    print_json({"path": f"{ESCAPE}\x7f\n"})
    assert capsys.readouterr().out == '{"path": "\\u001b]0;title\\u0007\\u007f\\n"}\n'

import pytest

from blip_diffusion.escaping import escaped, printable, warn


def test_unprintable_characters_are_escaped() -> None:
    assert escaped("a\x1b[2J\nb\u202ec\ud800") == "a\\x1b[2J\\nb\\u202ec\\ud800"
    assert escaped("a\nb\x07", lines=True) == "a\nb\\x07"


def test_long_messages_are_shortened_and_long_paths_are_not() -> None:
    assert len(printable("n" * 5000)) < 2010 and "…" in printable("n" * 5000)
    assert escaped("n" * 5000) == "n" * 5000


def test_warnings_are_escaped_and_point_at_the_caller() -> None:
    with pytest.warns(UserWarning, match=r"^a\\x1b\[2J\\nb$") as caught:
        warn("a\x1b[2J\nb", stacklevel=1)
    assert caught[0].filename == __file__

import math
import time

import pytest

from blip_diffusion.strict_json import parse_json


def test_values_are_those_of_json() -> None:
    assert parse_json('{"a": [1, 2.5, null, true, "ü"], "b": {"a": {}}}') == {
        "a": [1, 2.5, None, True, "ü"],
        "b": {"a": {}},
    }
    assert parse_json(b'"\xc3\xbc"') == "ü"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"steps": 1, "size": 2, "size": 3}', "the key 'size' is given twice"),
        ('[{"a": {"b": 1, "c": 2, "b": 1}}]', "the key 'b' is given twice"),
        ('{"a": 1, "\\u0061": 2}', "the key 'a' is given twice"),
        ("[" * 100_000, "too many levels"),
        ('{"a": ' * 100_000, "too many levels"),
        ("[" * 200 + "]" * 200, "too many levels"),
        ("9" * 10_000, "integer string conversion"),
        ("{", "Expecting property name"),
        (b'{"a": "\xff\xfe"}', "can't decode"),
    ],
)
def test_untrusted_json_is_refused(text: str | bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_json(text)


def test_numbers_that_are_not_finite_are_refused_on_demand() -> None:
    assert math.isnan(parse_json("NaN")) and parse_json("[-Infinity]") == [-math.inf]
    for name in ("NaN", "Infinity", "-Infinity"):
        with pytest.raises(ValueError, match=f"{name} is not a number"):
            parse_json(f'{{"a": {name}}}', finite=True)
    assert parse_json("[1e999]") == [math.inf]
    with pytest.raises(ValueError, match="1e999 is too large for a number"):
        parse_json("[1e999]", finite=True)


def test_a_repeated_key_among_many_is_found_in_linear_time() -> None:
    keys = ", ".join(f'"{number}": 1' for number in range(300_000))
    start = time.process_time()
    with pytest.raises(ValueError, match="the key '299999' is given twice"):
        parse_json(f'{{{keys}, "299999": 2}}')
    assert time.process_time() - start < 5

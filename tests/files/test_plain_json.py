"""Lines of .jsonl files: objects of plain values are read, anything else is refused with a reason."""

import pytest

from pagedvid.errors import ConfigError
from pagedvid.files.plain_json import check_texts, read_json_object


def test_objects():
    line = '{"a": [1, 2.5, null, {"b": "\\ud83d\\ude00"}], "c\\u2028": true}'
    assert read_json_object(line) == {"a": [1, 2.5, None, {"b": "\U0001f600"}], "c\u2028": True}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "not valid JSON: Expecting value at column 1"),
        ('{"a": 1', "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "has 5000 digits; the most is 25"),
        ('{"a": 1e400}', "1e400 is too large"),
        ('{"a": NaN}', "NaN is not a number"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1, "a": 2}', '"a" is written twice'),
        ('{"a": {"b": 1, "b": 2}}', '"b" is written twice'),
    ],
)
def test_what_is_refused(line, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        read_json_object(line)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value", ['"x\\ud83d"', '[["x\\ude00"]]', '{"b": {"\\udc80": 1}}', '"\\u0000"', '{"\\u0000": 1}']
)
def test_text_that_no_file_can_hold_is_found_anywhere(value):
    fields = read_json_object(f'{{"a": {value}}}')
    with pytest.raises(ConfigError, match=r"half of a surrogate pair|a NUL character"):
        check_texts(fields)

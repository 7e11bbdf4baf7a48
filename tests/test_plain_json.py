"""Lines of .jsonl files: objects of plain values, and a reason for whatever is not."""

import pytest

from pagedvid.errors import ConfigError
from pagedvid.plain_json import read_json_object


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
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": -Infinity}', "-Infinity is no number"),
        ('{"a": 1, "a": 2}', '"a" is written twice'),
        ('{"a": {"b": 1, "b": 2}}', '"b" is written twice'),
        ('{"a": "x\\ud83d"}', r"half of a surrogate pair \(U\+D83D\)"),
        ('{"a": [["x\\ude00"]]}', r"half of a surrogate pair \(U\+DE00\)"),
        ('{"a": {"b": "x\\u0000"}}', "contains a NUL"),
        ('{"\\u0000": 1}', "contains a NUL"),
    ],
)
def test_what_is_refused(line, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        read_json_object(line)
    assert len(str(caught.value)) < 300

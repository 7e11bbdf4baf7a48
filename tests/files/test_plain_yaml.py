"""YAML as pagedvid reads it: plain values are read, anything else is refused with its line."""

import time
from contextlib import suppress

import pytest

from pagedvid.files.plain_yaml import MAX_YAML_BYTES, YamlError, read_scalar


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("", None),
        ("~", None),
        ("true", True),
        ("off", "off"),
        ("yes", "yes"),
        ("12", 12),
        ("+5", 5),
        ("010", 10),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("\u0663", "\u0663"),
        (".inf", ".inf"),
        ("9" * 5000, "9" * 5000),
        ("2024-13-01", "2024-13-01"),
        ("<<", "<<"),
        ("'12'", "12"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
        ("{0-1: int8, 5: int2}", {"0-1": "int8", 5: "int2"}),
    ],
)
def test_values(written, value):
    read = read_scalar(written)
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: 1\nb: !!int x\n", 2, "the tag !!int is not read"),
        ("a: !!python/object:os.system x", 1, "is not read"),
        ("a: &x [1]\nb: *x\n", 2, r"the alias \*x is not read"),
        ("[" * 5000, 1, "nested more than 16 deep"),
        ("- " * 5000, 1, "nested more than 16 deep"),
        ("a:\n  b: 1\n  b: 2\n", 3, '"b" is written twice'),
        ("{1: a, 01: b}", 1, '"1" is written twice'),
        ("{[1]: 2}", 1, "a key must be a word or a number"),
        ("a:\n\tb: 1\n", 2, "not valid YAML"),
        ("a: 'x", 1, "not valid YAML"),
        ("a\n\x00", 2, r"U\+0000 is not printable"),
        ("\ud83d", 1, r"U\+D83D is not printable"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
    ],
)
def test_what_is_refused_has_a_line(text, line, reason):
    with pytest.raises(YamlError, match=reason) as caught:
        read_scalar(text)
    assert caught.value.line == line


def test_laughs_do_not_grow():
    laughs = "a: &a [x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
    )
    with pytest.raises(YamlError, match="alias"):
        read_scalar(laughs)


@pytest.mark.parametrize("piece", ["[1,", "{a: 1,", "\n"])
def test_the_largest_file_takes_seconds(piece):
    text = (piece * MAX_YAML_BYTES)[:MAX_YAML_BYTES]
    started = time.process_time()
    with suppress(YamlError):
        read_scalar(text)
    assert time.process_time() - started < 20

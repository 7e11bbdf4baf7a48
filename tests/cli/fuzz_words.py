"""Wrong values, as people write them and as nobody would: what a fuzzed command line has in place of a value."""

from __future__ import annotations

from hypothesis import strategies as st

LONG = 5000
_NUMBERS = """
    0 1 -1 +5 3.5 16 256 512 1024 4096 65536 100000 1000000000000 9223372036854775807 9223372036854775808
    1e3 1e400 -1e400 1e-320 nan .nan inf -.inf 1_000 010 0x10 0b1 1:30 1,5 \u0663 \xb2
"""
_WORDS = """
    - -- = , a auto null ~ true off foo {} [] int2 int4/int2 klt2 klt1.5/klt3 klt\u0662 cuda cuda:0 cuda:\u0663
    1+6 0+1000000000 18frames 1000000000frames 4.5s 0.0s 832x480 65536x65536 8x8 x streams=4 seconds=\u0663
    80GiB 1EiB 1024TiB -5GiB 1.5 *a 2024-13-01 2024-01-01 . .. / ~root $HOME none.yaml none.txt none.jsonl
    /dev/null /dev/zero /dev/stdin /dev/full /proc/self/mem demo.yaml/x
"""
_JSON = "1e400 NaN -Infinity tru 'a' [1,] 0x10 01 1. {} []"
NUMBERS = (
    *_NUMBERS.split(),
    *(" 5 ", "9" * 400, "9" * LONG, "0." + "3" * LONG, "1e" + "9" * LONG, "-" * LONG),
)
WORDS = (
    *_WORDS.split(),
    *("", " ", "%s %(prog)s", "{a: b}", "[1, 2]", "{0-1: int8, 5: int2}", "{0-1: int8, 0-1: int4}", "{\u0660: int8}"),
    *("{1000000000000: int8}", "{[1]: 2}", "{1: 1, 01: 2}", "!!int x", "!!python/object:os.system x", "&a [*a]"),
    *("<<: {a: 1}", "? a", "a: b: c", "'", '"\\0"', '"\\ud83d"', "|", ">", "%YAML 9.9", "--- 1\n--- 2", "# a", "a\tb"),
    *("\t", "\0", "\ud83d", "\x1b[31mred\x1b[0m", "\u202etxt.exe", "\u2028", "\x85", "\ufeff", "1 gib", "klt2\n"),
    *("[" * LONG, "{" * LONG, "- " * LONG, "\xe9" * LONG, "a" * LONG, "a " * LONG, "a/" * LONG, "a" * 256),
    *("klt" + "1" * LONG, "int2/" * 40, "cuda:" + "9" * LONG, "9" * LONG + "x16", "9" * 25 + "TiB", "9" * 400 + "GiB"),
    *("streams=" + "9" * LONG, "seconds=" + "9" * LONG),
)
"""What a person, a script with an empty variable or an attacker writes in place of a value."""
JSON_TEXTS = (
    *_JSON.split(),
    *('{"a": 1, "a": 2}', '"\\ud83d"', '"\\u0000"', '"\\u001b[31m"', '"\\u202e"', "", '"' + "a" * LONG + '"'),
    *("9" * LONG, "-" + "9" * 30, "[" * LONG, '{"a":' * LONG),
)

nasty_words = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.text(max_size=8), st.integers().map(str), st.floats().map(str)
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=6),
        st.sampled_from(WORDS),
        st.sampled_from(NUMBERS),
    ),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=6,
)

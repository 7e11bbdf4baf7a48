"""Prompts files: what is read, and what is refused before anything starts."""

import json

import pytest

from pagedvid.cli.prompts import read_prompts
from pagedvid.config.sections import GenerateConfig
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError


def test_text_files_skip_comments_and_empty_lines(prompts):
    path = prompts("# comment", "", "A red circle, moving LEFT!", "   ", "a blue square  ")
    assert read_prompts(path, GenerateConfig(num_frames=16, seed=7)) == [
        VideoRequest("000-a-red-circle-moving-left", "A red circle, moving LEFT!", 16, 7),
        VideoRequest("001-a-blue-square", "a blue square", 16, 8),
    ]


def test_json_lines_say_more(prompts):
    path = prompts({"prompt": "red"}, {"prompt": "blue", "id": "sky", "seed": 3, "num_frames": 5})
    assert read_prompts(path, GenerateConfig(num_frames=16, seed=7)) == [
        VideoRequest("000-red", "red", 16, 7),
        VideoRequest("sky", "blue", 5, 3),
    ]


def test_default_ids_are_short_and_never_empty(prompts):
    long_words, one_word, no_words = "red " * 30, "r" * 80, "!!!"
    ids = [request.id for request in read_prompts(prompts(long_words, one_word, no_words), GenerateConfig())]
    assert ids == ["000" + "-red" * 14, "001-" + "r" * 56, "002"]


def test_the_same_prompt_twice_is_two_videos(prompts):
    requests = read_prompts(prompts("red", "red"), GenerateConfig())
    assert [(request.id, request.seed) for request in requests] == [("000-red", 0), ("001-red", 1)]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbfred\r\nblue\r\n")
    assert [it.prompt for it in read_prompts(tmp_path / "prompts.txt", GenerateConfig())] == ["red", "blue"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "red"', "prompts.jsonl:2: not valid JSON"),
        ('["red"]', "prompts.jsonl:2: each line must be a JSON object"),
        ({"promt": "red"}, 'prompts.jsonl:2: unknown field "promt" - did you mean "prompt"'),
        ({"prompt": "red", "zzz": 1}, "known: prompt, prompts, id, seed, num_frames"),
        ({"id": "a"}, '"prompt" is None; it must be a non-empty string'),
        ({"prompt": "  "}, "\"prompt\" is '  '"),
        ({"prompt": 3}, '"prompt" is 3'),
        ({"prompt": "red", "num_frames": 0}, '"num_frames" is 0; it must be a whole number from 1 to 100000'),
        ({"prompt": "red", "num_frames": 2.5}, '"num_frames" is 2.5'),
        ({"prompt": "red", "num_frames": True}, '"num_frames" is True'),
        ({"prompt": "red", "seed": -1}, '"seed" is -1; it must be a whole number from 0 to 9223372036854775807'),
        ({"prompt": "red", "seed": 2**63}, '"seed" is'),
        ({"prompt": "red", "id": ""}, "\"id\" is ''"),
        ({"prompt": "red", "id": "a/b"}, "\"id\" is 'a/b'; it names files"),
        ({"prompt": "red", "id": "..\\b"}, '"id" is'),
        ({"prompt": "red", "id": ".hidden"}, "\"id\" is '.hidden'"),
        ({"prompt": "red", "id": "-rf"}, "\"id\" is '-rf'"),
        ({"prompt": "red", "id": "a b"}, "\"id\" is 'a b'"),
        ({"prompt": "red", "id": "x" * 121}, "at most 120 bytes"),
        ({"prompt": "red", "id": "ü" * 61}, "at most 120 bytes"),
        ({"prompt": "red", "id": 7}, '"id" is 7'),
        (
            {"prompt": "red", "num_frames": 100_001},
            '"num_frames" is 100001; it must be a whole number from 1 to 100000',
        ),
        ({"prompt": "red \ud83d"}, "prompts.jsonl:2: 'red \\ud83d' contains half of a surrogate pair"),
        ({"prompt": "red \0"}, "prompts.jsonl:2: 'red \\x00' contains a NUL"),
        ({"prompt": "red", "id": "a\ud83d"}, "prompts.jsonl:2: 'a\\ud83d' contains half of a surrogate pair"),
        ({"prompt": "red", "inputs": {"e": "a\0"}}, "prompts.jsonl:2: 'a\\x00' contains a NUL"),
        ({"prompt": "red", "inputs": {"e": "a" * 5000}}, "File name too long"),
        ({"prompt": "red", "inputs": {"e": "/dev/zero"}}, "there is no such file"),
        ({"prompt": "red " * 2501}, "prompts.jsonl:2: the prompt has 10004 characters; the most is 10000"),
        ("[" * 200_000, "prompts.jsonl:2: not valid JSON: brackets are nested too deeply"),
        ('{"prompt": "red", "seed": ' + "9" * 5000 + "}", "has 5000 digits"),
        ('{"prompt": "red", "prompt": "blue"}', '"prompt" is written twice'),
        ({"prompt": "red", "id": "FIRST"}, 'prompts.jsonl:2: id "FIRST" is already used in prompts.jsonl:1'),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "red", "id": "first"}\n' + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(ConfigError) as caught:
        read_prompts(path, GenerateConfig())
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


def test_text_lines_hold_text(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("red\u2028circle\nred \0\n".encode())
    with pytest.raises(ConfigError, match=r"prompts\.txt:2: .* contains a NUL"):
        read_prompts(tmp_path / "prompts.txt", GenerateConfig())


def test_a_default_id_can_clash_with_a_given_one(prompts):
    with pytest.raises(ConfigError, match='id "001-red" is already used'):
        read_prompts(prompts({"prompt": "red", "id": "001-red"}, {"prompt": "red"}), GenerateConfig())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.txt", b"", "has no prompt"),
        ("prompts.txt", b"# only\n\n# comments\n", "has no prompt"),
        ("prompts.jsonl", b"\n", "has no prompt"),
        ("prompts.txt", b"caf\xe9\n", "not UTF-8 text"),
        ("prompts.json", b"[]", "the name must end in .txt"),
        ("prompts", b"red", "the name must end in .txt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / name, GenerateConfig())


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ConfigError, match="there is no such file"):
        read_prompts(tmp_path / "none.txt", GenerateConfig())
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prompts(tmp_path / "folder.txt", GenerateConfig())

"""`pagedvid config show`."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cli import config_show
from pagedvid.codecs.assignment import read_layers
from pagedvid.config.file import load_config
from pagedvid.config.sections import Config
from pagedvid.files.plain_yaml import read_scalar
from tests.cli.fuzz_words import WORDS


def test_the_table_names_values_and_sources(command, tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("cache:\n  memory: 3GiB\n")
    code, out, _ = command("config", "show", "--config", file, "--kv", "int4", "--set", "engine.denoise_steps=4")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["setting", "value", "source"]
    assert ["cache.memory", "3GiB", "my.yaml:2"] in rows
    assert ["cache.codec", "int4", "--kv"] in rows
    assert ["engine.denoise_steps", "4", "--set"] in rows
    assert ["model.weights", "null", "default"] in rows
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_the_same(command):
    code, out, _ = command("config", "show", "--format", "json", "--no-correction")
    assert code == 0
    settings = json.loads(out)
    assert settings["cache.correction"] == {"value": "off", "source": "--no-correction"}
    assert settings["cache.memory"] == {"value": "2GiB", "source": "default"}
    assert settings["cache.debug_checks"]["value"] is False


def test_yaml_can_be_read_back(command, tmp_path):
    options = ["--frames", 9, "--no-correction", "--memory", "1500MB", "--set", "cache.sink_codec=int8"]
    options += ["--kv", "int4/klt1.5", "--set", "cache.layer_codecs={0-1: int8, 5: klt2/int4}"]
    options += ["--set", "cache.page_rows=40", "--set", "cache.tables=my tables.safetensors"]
    _, out, _ = command("config", "show", "--format", "yaml", *options)
    (tmp_path / "copy.yaml").write_text(out)
    copy = load_config(tmp_path / "copy.yaml")
    assert copy != Config()
    assert (copy.generate.num_frames, copy.cache.memory) == (9, 1_500_000_000)
    assert (copy.cache.correction, copy.cache.sink_codec) == ("off", "int8")
    assert copy.cache.layer_codecs == read_layers({"0-1": "int8", 5: "klt2/int4"})
    assert (copy.cache.codec, copy.cache.page_rows) == ("int4/klt1.5", 40)
    assert copy.cache.tables == "my tables.safetensors"
    _, again, _ = command("config", "show", "--format", "yaml", "--config", tmp_path / "copy.yaml")
    assert [line.split(" #")[0].rstrip() for line in again.splitlines()] == [
        line.split(" #")[0].rstrip() for line in out.splitlines()
    ]


@given(st.one_of(st.from_regex(r"[-+.0-9eE_:x]{1,6}", fullmatch=True), st.text(min_size=1), st.sampled_from(WORDS)))
def test_every_word_can_be_read_back(word):
    if "\0" not in word and not any("\ud800" <= char <= "\udfff" for char in word):
        assert read_scalar(config_show._word(word)) == word


def test_a_table_obeys_nothing_and_stays_narrow(command):
    _, out, _ = command("config", "show", "--weights", "\x1b[31mred", "--set", "model.vae=" + "v" * 3000)
    assert "\x1b" not in out and '"\\e[31mred"' in out
    assert sorted(map(len, out.splitlines()))[-2] <= 80


@pytest.mark.parametrize("argv", [["config"], ["config", "hide"], ["config", "show", "--format", "xml"]])
def test_wrong_command_lines(command, argv):
    code, _, err = command(*argv)
    assert code == 2
    assert err.startswith("pagedvid: error: ")
    assert err.count("\n") == 1


def test_bad_values(command, tmp_path):
    (tmp_path / "bad.yaml").write_text("cache:\n  codec: int3\n")
    code, _, err = command("config", "show", "--config", tmp_path / "bad.yaml")
    assert (code, err.count("\n")) == (2, 1)
    assert "bad.yaml:2: cache.codec is 'int3'" in err

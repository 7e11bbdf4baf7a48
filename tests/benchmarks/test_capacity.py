"""benchmarks/capacity.py: every model has a line, and the table of a page can be replaced."""

from __future__ import annotations

import json

import capacity
from lib.pages import markers
from pagedvid.capacity.card_files import all_cards


def test_the_table_of_all_models(tmp_path, capsys):
    readme, out = tmp_path / "README.md", tmp_path / "capacity.json"
    begin, end = markers("capacity")
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    capacity.main(["--gpu", "h100", "--out", str(out), "--readme", str(readme)])
    printed = capsys.readouterr().out
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    models = json.loads(out.read_text())["results"]["models"]
    assert [model["model"] for model in models] == list(all_cards())
    for model in models:
        assert f"| {model['model']} |" in text or f"| {model['model']} (" in text
        assert model["model"] in printed
    (self_forcing,) = (model for model in models if model["model"] == "self-forcing")
    assert self_forcing["codecs"]["int2"]["num_streams"] > 7 * self_forcing["codecs"]["bf16"]["num_streams"]
    capacity.main(["--gpu", "h100", "--out", str(out), "--readme", str(readme)])
    assert readme.read_text() == text


def test_small_gpus_take_fp8_or_nothing(tmp_path, capsys):
    capacity.main(["--gpu", "rtx4090", "--out", str(tmp_path / "capacity.json")])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "(fp8)" in lines["krea-14b"]
    assert lines["magi-1-24b"].split()[2:] == ["-"] * 5

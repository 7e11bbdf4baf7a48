"""What a number of bits means for the demo model, in `--plan` and `config show`."""

from __future__ import annotations

import re

from pagedvid.cli.bits_words import bits_lines
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.models.build import resolve

HEADS = 18


def counts(line: str) -> dict[str, int]:
    """Heads by codec or look-back."""
    return {name: int(count) for count, name in re.findall(r"(\d+) x ([^,]+)", line)}


def test_every_head_is_counted_once():
    run = resolve(Config(cache=CacheConfig(codec="klt", bits=0.75, look_back="per_head")))
    lines = bits_lines(run)
    assert [line.split()[0] for line in lines] == ["bits", "keys", "values", "history"]
    assert lines[0] == f"bits     0.75 per value asked for, {run.spending.bits:.3f} spent by the profile of the model"
    assert all(sum(counts(line).values()) == HEADS and len(line) <= 120 for line in lines[1:])
    stored = [each for row in run.spending.heads for each in row]
    assert counts(lines[1])["klt0.75"] == sum(each.keys == "klt0.75" for each in stored)
    assert counts(lines[3])["the newest 3"] == sum(
        (each.recent_chunks, each.keeps_sinks) == (3, False) for each in stored
    )


def test_look_backs_that_are_alike_are_not_said():
    run = resolve(Config(cache=CacheConfig(codec="klt", bits=0.75, look_back="uniform")))
    assert [line.split()[0] for line in bits_lines(run)] == ["bits", "keys", "values"]


def test_other_codecs_have_nothing_to_say():
    assert bits_lines(resolve(Config(cache=CacheConfig(codec="klt2")))) == []


def test_the_plan_and_the_settings_say_it(command, prompts, tmp_path):
    code, plan, _ = command("generate", "--prompts", prompts("a red circle"), "--out", tmp_path / "out", "--plan")
    assert code == 0 and "codecs   klt, head by head" in plan and "bits     1.25 per value asked for" in plan
    code, shown, _ = command("config", "show", "--kv", "klt", "--set", "cache.bits=2")
    assert code == 0 and "bits     2 per value asked for" in shown
    assert "per value" not in command("config", "show")[1]

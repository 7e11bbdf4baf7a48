"""Which checkpoints an engine accepts: those of the same settings and of files that hold the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pagedvid.cache.window import Window
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.engine.checkpoint_file import Origin
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.errors import ConfigError
from pagedvid.models.build import resolve
from pagedvid.models.demo.weights import SHIPPED_WEIGHTS
from pagedvid.models.origin import origin_of

GEOMETRY = ModelGeometry(6, 6, 6, 32, 16, 8)


def origin(config: Config, **model: object) -> Origin:
    """Of an engine of the demo model; `model`: settings that stand in the configuration besides, unchecked by it."""
    run = resolve(config)
    run = replace(run, config=replace(run.config, model=ModelConfig(**model) if model else run.config.model))  # type: ignore[arg-type]
    loaded = SimpleNamespace(name=run.config.model.name, geometry=GEOMETRY, positions="window")
    return origin_of(run, loaded)  # type: ignore[arg-type]


def differing(one: Origin, other: Origin) -> set[str]:
    facts, others = one.facts(), other.facts()
    assert facts.keys() == others.keys()
    return {name for name in facts if facts[name] != others[name]}


INT2 = Config(cache=CacheConfig(codec="int2"))


def test_the_same_settings_have_the_same_origin():
    assert origin(INT2) == origin(INT2) and origin(INT2).window == Window(1, 4, "window")


@pytest.mark.parametrize(
    ("section", "changes", "expected"),
    [
        ("cache", {"codec": "int4"}, {"cache.codecs.history"}),
        ("cache", {"sink_codec": "int8"}, {"cache.codecs.sink"}),
        ("cache", {"layer_codecs": {0: "int8"}}, {"cache.codecs.layers"}),
        ("cache", {"recent_chunks": 3}, {"window.recent_chunks"}),
        ("cache", {"correction": "off"}, {"cache.correction"}),
        ("cache", {"page_rows": 18}, {"cache.page_rows"}),
        ("engine", {"denoise_steps": 7}, {"denoise_steps"}),
        ("model", {"dtype": "bfloat16"}, {"model.dtype"}),
        ("model", {"ema": False}, {"model.ema"}),
        ("cache", {"memory": "3MiB"}, set()),
        ("cache", {"debug_checks": True}, set()),
        ("engine", {"policy": "round_robin"}, set()),
        ("engine", {"max_batch_tokens": 5}, set()),
        ("model", {"device": "cuda"}, set()),
    ],
)
def test_settings_that_matter_differ_and_others_do_not(section, changes, expected):
    other = replace(INT2, **{section: replace(getattr(INT2, section), **changes)})
    assert differing(origin(INT2), origin(other)) == expected


@pytest.mark.parametrize(
    ("name", "value"), [("ar_step", 5), ("shift", 5.0), ("special_tokens", ["hq"]), ("null_special_tokens", True)]
)
def test_settings_of_other_models_matter(name, value):
    one, other = (origin(INT2, name="demo", **changes) for changes in ({}, {name: value}))
    assert differing(one, other) == {f"model.{name}"}


def test_codecs_of_every_head_matter():
    """The default of the demo model spends its bits head by head, a few more on longer look-backs."""
    one, other = (origin(Config(cache=CacheConfig(bits=bits))) for bits in (1.25, 1.3))
    assert differing(one, other) == {"cache.codecs.look_back"}
    assert all(len(str(fact)) < 80 for fact in one.facts().values())


def test_tables_matter_where_codecs_need_them(tmp_path):
    klt = replace(INT2.cache, codec="klt2")
    shutil.copy(SHIPPED_WEIGHTS / "klt_tables.safetensors", tmp_path / "tables")
    copied = origin(Config(cache=replace(klt, tables=str(tmp_path / "tables"))))
    assert differing(origin(Config(cache=klt)), copied) == set()
    assert copied.files["tables"] is not None and origin(INT2).files["tables"] is None


def test_weights_matter_by_what_they_hold(tmp_path):
    shipped = origin(INT2)
    for name in ("a", "b", "c", "d"):
        shutil.copytree(SHIPPED_WEIGHTS, tmp_path / name)
    (tmp_path / "a" / ".hidden").write_text("x")
    save_file({"x": torch.zeros(1)}, tmp_path / "a" / "video.safetensors", {"format": "pagedvid latents 1"})
    with (tmp_path / "b" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    (tmp_path / "c" / "config.json").write_text((tmp_path / "c" / "config.json").read_text() + "\n")
    (tmp_path / "d" / "special_tokens.npz").write_bytes(b"x")
    copies = {name: origin(INT2, name="demo", weights=str(tmp_path / name)) for name in ("a", "b", "c", "d")}
    assert {name: differing(shipped, copy) for name, copy in copies.items()} == {
        "a": set(),
        "b": {"files.weights"},
        "c": {"files.weights"},
        "d": {"files.weights"},
    }


def pipeline(folder: Path) -> Path:
    for part in ("transformer", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
        save_file({"x": torch.zeros(3)}, folder / part / "weights-1.safetensors")
        save_file({"y": torch.ones(3)}, folder / part / "weights-2.safetensors")
        (folder / part / "config.json").write_text(f'{{"part": "{part}"}}')
    return folder


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_every_part_of_a_pipeline_matters(part, tmp_path):
    one, other = (
        origin(INT2, name="self-forcing", weights=str(pipeline(tmp_path / name))) for name in ("one", "other")
    )
    assert differing(one, other) == set() and None not in list(one.files.values())[:3]
    save_file({"y": torch.full((3,), 2.0)}, tmp_path / "other" / part / "weights-2.safetensors")
    other = origin(INT2, name="self-forcing", weights=str(tmp_path / "other"))
    assert differing(one, other) == {f"files.{'weights' if part == 'transformer' else part}"}


def test_named_parts_come_before_those_of_a_pipeline(tmp_path):
    whole, named = pipeline(tmp_path / "whole"), pipeline(tmp_path / "named")
    (named / "vae" / "config.json").write_text("{}")
    given = {"name": "self-forcing", "weights": str(whole)}
    assert differing(origin(INT2, **given), origin(INT2, **given, vae=str(named / "vae"))) == {"files.vae"}
    assert differing(origin(INT2, **given), origin(INT2, **given, text_encoder=str(named))) == set()


def test_loras_matter_by_their_contents_and_scales(tmp_path):
    weights = str(pipeline(tmp_path / "model"))
    for name, value in (("a", 1.0), ("copy", 1.0), ("b", 2.0)):
        save_file({"x": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")

    def of(*loras: str) -> Origin:
        return origin(INT2, name="self-forcing", weights=weights, loras=[str(tmp_path / lora) for lora in loras])

    one = of("a.safetensors:0.5")
    assert differing(one, of("copy.safetensors:0.5")) == set()
    assert differing(one, of("b.safetensors:0.5")) == {"files.loras"}
    assert differing(one, of("a.safetensors:0.51")) == {"model.lora_scales"}
    assert differing(one, of("a.safetensors:0.50000001")) == {"model.lora_scales"}
    assert differing(one, of()) == {"files.loras", "model.lora_scales"}
    assert differing(of("a.safetensors", "b.safetensors"), of("b.safetensors", "a.safetensors")) == {"files.loras"}


def test_the_settings_of_a_lora_matter(tmp_path):
    """They have its alpha (models/common/lora_settings.py)."""
    weights = str(pipeline(tmp_path / "model"))

    def of(folder: str, alpha: int) -> Origin:
        (tmp_path / folder).mkdir()
        save_file({"x": torch.ones(3)}, tmp_path / folder / "adapter_model.safetensors")
        (tmp_path / folder / "adapter_config.json").write_text(f'{{"lora_alpha": {alpha}}}')
        return origin(INT2, name="self-forcing", weights=weights, loras=[str(tmp_path / folder)])

    one = of("one", 8)
    assert differing(one, of("same", 8)) == set()
    assert differing(one, of("other", 16)) == {"files.loras"}


def test_weights_that_are_gone_are_named(tmp_path):
    with pytest.raises(ConfigError, match="gone"):
        origin(INT2, name="self-forcing", weights=str(tmp_path / "gone.safetensors"))

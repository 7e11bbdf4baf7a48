"""The proof agrees with the prediction, and says so when it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedvid.attention.store import LayerStore
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.cards import Resolution
from pagedvid.capacity.look_back import RebuiltLookBack, SlidingLookBack
from pagedvid.capacity.prove import Check, prove
from pagedvid.capacity.sizing import CODEC_CHOICES, Question
from pagedvid.capacity.tensor_bytes import live_bytes, peak_extra_bytes
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.units import GIB, KIB, MIB

CPU = torch.device("cpu")


def small(model="demo", memory=9 * MIB, **changes):
    card = find_card(model)
    return replace(Question(card, card.resolution, card.window, memory, "none"), **changes)


BY_HEAD = ChunkCodecs.read("int2", heads=[(0, 1, 1, "int8/int4"), (1, 1, 1, None), (2, 0, 0, "int4-post/bf16")])
CHOICES = {
    **CODEC_CHOICES,
    "int4/int2": StreamCodecs("int4/int2"),
    "bf16/int2": StreamCodecs("bf16/int2", newest="bf16"),
    "layers": StreamCodecs("int2", newest="int4/int2", layers=((0, 1, "int8/int4"),)),
    "windows of heads": StreamCodecs("int4", look_back=[(0, 0, 2, 1, False), (3, 1, 1, 2, True)]),
    "newest apart": StreamCodecs("int2", newest="int8", look_back=[(0, 0, 2, 1, False), (1, 1, 2, 2, False)]),
    "token2-g64": StreamCodecs("token2-g64"),
    "hadamard2-g64": StreamCodecs("hadamard2-g64", newest="int4-post"),
    "hadamard8-g64 first": StreamCodecs("bf16/int2", newest="hadamard8-g64"),
    "int2-pair-s8": StreamCodecs("int2-pair-s8"),
    "heads": StreamCodecs(BY_HEAD),
}


WIDE = ("bf16", "int8", "mixed", "bf16/int2", "hadamard8-g64 first")
"""Of these the others' memory holds one stream."""


@pytest.mark.parametrize("name", CHOICES)
def test_predicted_is_measured(name):
    proof = prove(small(memory=(9 if name in WIDE else 5) * MIB), name, CHOICES[name])
    assert proof.agrees, proof.checks
    checks = {check.what: check for check in proof.checks}
    assert checks["streams admitted"].measured > 1
    exact = ["pages of the pool", "bytes of the pool", "streams admitted", "pages at the peak", "resident bytes"]
    assert all(checks[what].measured == checks[what].predicted for what in exact)
    peak = checks["peak bytes"]
    assert abs(peak.measured - peak.predicted) < 2048  # page ids and the like; one head's keys would be 32 KiB


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("magi-1-4.5b", {"resolution": Resolution(64, 64)}),  # grouped queries
        ("skyreels-v2-1.3b", {"resolution": Resolution(64, 64)}),  # two branches
        ("hy-worldplay-5b", {"resolution": Resolution(128, 128), "look_back": RebuiltLookBack(10)}),  # rebuilt
    ],
)
def test_of_other_kinds_of_models_with_a_fraction_of_the_layers(model, changes):
    asked = small(model, **{"look_back": SlidingLookBack(1, 2), "memory": 80 * MIB, **changes})
    proof = prove(asked, "int2", StreamCodecs("int2"), layer_fraction=0.05)
    assert proof.agrees, proof.checks
    assert proof.num_layers == 2
    measured = {check.what: check.measured for check in proof.checks}
    tables, full_tables = 2 * asked.card.shape.num_kv_heads, asked.card.shape.num_tables
    page = 36 * 128
    assert measured["bytes of the pool"] == proof.full_bytes // page * tables // full_tables * page


def test_a_wrong_prediction_is_found_out(monkeypatch):
    real = LayerStore.write

    def leaky(*args):
        junk = torch.empty(32 * KIB, dtype=torch.uint8)
        real(*args)
        return junk

    monkeypatch.setattr(LayerStore, "write", leaky)
    proof = prove(small(), "int2", StreamCodecs("int2"))
    wrong = [check.what for check in proof.checks if not check.agrees]
    assert wrong == ["peak bytes"] and not proof.agrees


def test_checks_are_exact_or_within_their_tolerance():
    assert Check("", 100, 100).agrees and not Check("", 100, 101).agrees
    assert Check("", 100, 102, 0.02).agrees and not Check("", 100, 97, 0.02).agrees


def test_nothing_is_left_behind():
    before = live_bytes(CPU)
    prove(small(), "int4", StreamCodecs("int4"))
    assert live_bytes(CPU) == before


def test_live_and_peak_bytes_are_counted():
    before = live_bytes(CPU)
    held = torch.empty(5 * MIB, dtype=torch.uint8)
    views = [held[:10], held.view(5, MIB)]  # share its storage
    assert live_bytes(CPU) == before + 5 * MIB

    def call():
        first = torch.empty(3 * MIB, dtype=torch.uint8)
        del first
        torch.zeros(MIB, dtype=torch.uint8).float()

    assert peak_extra_bytes(CPU, call) == 5 * MIB
    assert len(views) == 2


def test_the_profiler_keeps_quiet(capfd):
    assert peak_extra_bytes(CPU, lambda: None) == 0
    assert capfd.readouterr() == ("", "")


def test_errors_inside_the_measured_call_come_through():
    def call():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_extra_bytes(CPU, call)


def test_what_cannot_be_proven_here():
    with pytest.raises(CapacityError, match=r"would allocate .* --scale"):
        prove(small(memory=2**50), "int2", StreamCodecs("int2"))
    with pytest.raises(ConfigError, match="would take too long"):
        prove(small(memory=GIB, look_back=SlidingLookBack(0, 1000)), "int2", StreamCodecs("int2"))
    for device in ("tpu9", "meta", "cuda:99"):
        with pytest.raises(ConfigError, match="device is"):
            prove(small(), "int2", StreamCodecs("int2"), device=device)

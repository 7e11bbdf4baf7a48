"""Bits become codecs and look-backs by head: bytes are kept to, and no other choice of one head would be better."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from pagedvid.budgets.spend import HeadStorage, Spending, spend
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError
from tests.budgets.profiles import HEADS, LAYERS, RECENT, profile
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, SPAN_TOKENS

PAGE = PageFormat(HEAD_DIM, 12, FRAME_TOKENS, NUM_FRAMES)
WINDOW = (1, RECENT)


def bytes_of(stored: HeadStorage) -> int:
    pages = sum(read_codec(name).num_pages(PAGE, SPAN_TOKENS) for name in (stored.keys, stored.values))
    return pages * PAGE.num_bytes * (stored.recent_chunks + stored.keeps_sinks)


def error_of(layer: int, head: int, stored: HeadStorage) -> float:
    curves = profile()
    keys, values = (curves.rungs.index(name) for name in (stored.keys, stored.values))
    error = curves.keys_PLHR.mean(0)[layer, head, keys] + curves.values_PLHR.mean(0)[layer, head, values]
    return float(error + curves.windows_PLH2W.mean(0)[layer, head, int(stored.keeps_sinks), stored.recent_chunks - 1])


def heads_of(spent: Spending) -> list[tuple[int, int, HeadStorage]]:
    return [(layer, head, stored) for layer, row in enumerate(spent.heads) for head, stored in enumerate(row)]


@pytest.mark.parametrize("look_back", ["uniform", "per_head"])
@pytest.mark.parametrize("bits", [0.1, 0.5, 1.25, 2.25, 4])
def test_the_bytes_are_kept_to_and_no_head_alone_could_use_the_rest(bits, look_back):
    spent = spend(profile(), PAGE, *WINDOW, bits, look_back)
    assert [len(row) for row in spent.heads] == [HEADS] * LAYERS
    budget = int(bits * 2 * HEAD_DIM * SPAN_TOKENS * (1 + RECENT) * HEADS * LAYERS / 8)
    heads = heads_of(spent)
    assert spent.num_bytes == sum(bytes_of(stored) for *_, stored in heads) <= budget
    assert spent.error == pytest.approx(sum(error_of(*each) for each in heads), rel=1e-5)
    windows = product(range(1, RECENT + 1), (False, True)) if look_back == "per_head" else [(RECENT, True)]
    others = [HeadStorage(k, v, *w) for k, v, w in product(profile().rungs, profile().rungs, list(windows))]
    for layer, head, stored in heads:
        room = bytes_of(stored) + budget - spent.num_bytes
        best = min(error_of(layer, head, other) for other in others if bytes_of(other) <= room)
        assert error_of(layer, head, stored) <= best * (1 + 1e-6)


def test_joint_look_backs_are_never_worse():
    for bits in (0.3, 0.75, 1.5):
        uniform, joint = (spend(profile(), PAGE, *WINDOW, bits, each) for each in ("uniform", "per_head"))
        assert joint.error <= uniform.error * 1.01


def test_a_head_that_needs_nothing_gets_nothing():
    curves = profile()
    keys, values = curves.keys_PLHR.clone(), curves.values_PLHR.clone()
    keys[:, 1, 0] = values[:, 1, 0] = 0
    spent = spend(replace(curves, keys_PLHR=keys, values_PLHR=values), PAGE, *WINDOW, 1.0)
    assert spent.heads[1][0] == HeadStorage("mean", "mean", RECENT, True)


def test_other_pages_and_windows_than_the_profile_has_are_refused():
    with pytest.raises(ConfigError, match=r"measured with page_rows 12 \(here 16\)"):
        spend(profile(), replace(PAGE, rows=16), *WINDOW, 1.0)
    with pytest.raises(ConfigError, match=r"sink_chunks 1 \(here 0\), recent_chunks 3 \(here 2\)"):
        spend(profile(), PAGE, 0, 2, 1.0, "per_head")
    assert spend(profile(), PAGE, 0, 2, 1.0).bits <= 1.0
    short = replace(profile(), windows_PLH2W=profile().windows_PLH2W[..., :0])
    with pytest.raises(ConfigError, match=r"too short to tell .*more than 4 chunks"):
        spend(short, PAGE, *WINDOW, 1.0, "per_head")
    with pytest.raises(ConfigError, match="look_back is 'some'; allowed are uniform, per_head"):
        spend(profile(), PAGE, *WINDOW, 1.0, "some")


def test_a_ladder_of_integers():
    page = PageFormat(HEAD_DIM, 36, FRAME_TOKENS, NUM_FRAMES)
    spent = spend(profile("int"), page, *WINDOW, 9.0)
    assert {stored.keys for _, _, stored in heads_of(spent)} <= {"mean", "int2", "int4", "int8"}
    assert torch.isfinite(torch.tensor(spent.error))

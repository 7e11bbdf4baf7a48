"""Calibration: sums over chunks equal their definitions, and what is found is right where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedvid.calibration.fit import calibrate, calibration_of, fit
from pagedvid.calibration.sampling import SAMPLED_QUERIES
from pagedvid.calibration.statistics import SAMPLED_ANGLES, BlockMoments, LayerStatistics
from pagedvid.codecs.klt.blocks import BlockLayout, cosine_transform
from pagedvid.errors import ConfigError, ShapeError
from pagedvid.rotary.tables import unrotate
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, draw, tables

LAYOUT = BlockLayout(FRAME_TOKENS, NUM_FRAMES)


def test_moments_of_many_chunks_are_those_of_all_tokens():
    moments, chunks = BlockMoments(LAYOUT), 100 + draw(0, num_chunks=5).k_CHTD
    for chunk in chunks:
        moments.add(chunk)
    all_HnD = chunks.transpose(0, 1).flatten(1, 2).double()
    torch.testing.assert_close(moments.mean_HD().double(), all_HnD.mean(1), atol=1e-4, rtol=0)
    centred = chunks.double() - all_HnD.mean(1)[:, None]
    blocks_CHUFD = centred[:, :, LAYOUT.tokens(chunks.shape[2])]
    coefficients = cosine_transform(NUM_FRAMES).double() @ blocks_CHUFD
    expected = torch.einsum("chufd,chufe->hfde", coefficients, coefficients) / (5 * FRAME_TOKENS)
    torch.testing.assert_close(moments.covariance_HFDD().double(), expected, atol=1e-4, rtol=1e-3)


def test_queries_are_counted_as_keys_before_rotary_embedding_meet_them():
    seen, layer = draw(0, num_chunks=1), LayerStatistics(LAYOUT)
    layer.add_reading(seen)
    q_LHTD, k_HTD = seen.rotated(seen.q_LHTD, -1), seen.k_CHTD[0]
    expected, num_sampled = torch.zeros(2, HEAD_DIM, HEAD_DIM), 0
    for token in range(40):  # every second one would leave out columns of a frame of 10 tokens
        rotated = unrotate(q_LHTD, seen.cos_CTP[0, token], seen.sin_CTP[0, token])
        scores = seen.rotated(k_HTD, 0)[:, token, :, None]
        torch.testing.assert_close(rotated @ k_HTD[:, token, :, None], q_LHTD @ scores, atol=1e-4, rtol=1e-4)
        expected += torch.einsum("lhtd,lhte->hde", rotated, rotated)
        num_sampled += 1
    assert num_sampled >= SAMPLED_ANGLES and q_LHTD.shape[2] < 2 * SAMPLED_QUERIES  # all queries count
    torch.testing.assert_close(layer.query_square_HDD, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["keys", "values"])
def test_directions_are_uncorrelated_and_deviations_those_of_the_data(kind):
    found, videos = tables(kind), [draw(seed) for seed in range(4)]
    x = torch.cat([seen.k_CHTD if kind == "keys" else seen.v_CHTD for seen in videos])
    y = (x - found.mean_hD[:, None]) @ found.analysis_hDD
    total = torch.einsum("chnd,chne->hde", y, y)
    diagonal = total.diagonal(dim1=1, dim2=2)
    assert float((total - torch.diag_embed(diagonal)).abs().max()) < 1e-3 * float(diagonal.max())
    blocks = cosine_transform(NUM_FRAMES) @ y[:, :, LAYOUT.tokens(x.shape[2])]
    torch.testing.assert_close(found.deviation_hN, blocks.square().mean((0, 2)).flatten(1).sqrt(), rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(
        found.analysis_hDD @ found.synthesis_hDD, torch.eye(HEAD_DIM).expand(2, -1, -1), atol=1e-4, rtol=0
    )


def test_still_places_gather_the_importance_in_the_mean_over_frames():
    share = tables("values").spectrum_N
    assert bool((share.diff() <= 0).all()) and float(share.sum()) == pytest.approx(1.0, abs=1e-4)
    most_important = tables("values").order_hN[:, : HEAD_DIM // 4]
    assert bool((most_important < HEAD_DIM).all())  # frequency 0


def test_layers_do_not_look_at_each_other():
    both = calibrate([[draw(0)], [draw(1)]], "keys", LAYOUT)
    alone = [calibrate([[draw(seed)]], "keys", LAYOUT)[0].spectrum_N for seed in (0, 1)]
    for found, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(found.spectrum_N, expected)


def test_other_kinds_and_layers_that_saw_nothing_are_refused():
    with pytest.raises(ConfigError, match="allowed are 'keys' and 'values'"):
        calibrate([[draw(0)]], "queries", LAYOUT)
    only_stored = LayerStatistics(LAYOUT)
    only_stored.add_chunk(draw(0).k_CHTD[0], draw(0).v_CHTD[0])
    for layers in ([], [LayerStatistics(LAYOUT)], [only_stored]):
        with pytest.raises(ConfigError, match="not observed"):
            fit(layers, "keys")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("v_CHTD", lambda x: x[:, :1], r"v_CHTD is .* \[3, 1, 40, 16\]; .* must be torch.float32 \[3, 2, 40, 16\]"),
        ("k_CHTD", lambda x: x[0], r"has the shape \[2, 40, 16\]; it must have four axes"),
        ("q_LHTD", lambda x: x.bfloat16(), r"q_LHTD is torch.bfloat16 \[2, 2, 40, 16\]"),
        ("q_LHTD", lambda x: x.repeat(2, 1, 1, 1), r"current_k_LHTD is .* must be torch.float32 \[4, 2, 40, 16\]"),
        ("cos_CTP", lambda x: x[1:], r"cos_CTP is torch.float32 \[3, 40, 8\]; .* must be torch.float32 \[4, 40, 8\]"),
    ],
)  # fmt: skip
def test_tensors_of_an_observation_that_do_not_belong_together_are_refused(name, change, message):
    seen = draw(0)
    with pytest.raises(ShapeError, match=message):
        replace(seen, **{name: change(getattr(seen, name))})


def test_chunks_that_are_not_keys_and_values_of_one_length_are_refused():
    layer, (k_HTD, *_), (v_HTD, *_) = LayerStatistics(LAYOUT), draw(0).k_CHTD, draw(0).v_CHTD
    for k, v, name in ((k_HTD, v_HTD[:, 1:], "v_HTD"), (k_HTD[0], v_HTD, "k_HTD"), (k_HTD, v_HTD.bfloat16(), "v_HTD")):
        with pytest.raises(ShapeError, match=f"{name} is .*; keys and values of a chunk must both be torch.float32"):
            layer.add_chunk(k, v)
    assert layer.keys.num_blocks == layer.values.num_blocks == 0


def test_both_kinds_at_once():
    seen = draw(0)
    layer = LayerStatistics(LAYOUT)
    for chunk in range(3):
        layer.add_chunk(seen.k_CHTD[chunk], seen.v_CHTD[chunk])
    with pytest.raises(ConfigError, match="a layer was not observed"):
        calibration_of([layer], "toy")
    layer.add_reading(seen)
    made = calibration_of([layer, layer], "toy", "one draw")
    assert (made.model, made.calibrated_on, made.num_layers) == ("toy", "one draw", 2)
    for kind in ("keys", "values"):
        (expected,) = fit([layer], kind)
        assert torch.equal(made.tables(kind, 1).order_hN, expected.order_hN)
        torch.testing.assert_close(made.tables(kind, 1).mean_hD, expected.mean_hD)

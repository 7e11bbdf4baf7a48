"""The part "fp8": its reading of a stored history, and what it concludes."""

from __future__ import annotations

import json

import pytest
import torch

from fidelity import fp8
from fidelity.fp8 import fp8_tables, measure_codec, outputs, verdicts
from fidelity.tensor import Family, scheme_of
from lib.attention_error import exact_output, measure, relative_error, store
from lib.report import RESULTS
from lib.samples import draw_family
from pagedvid.codecs.assignment import CodecPair


@pytest.fixture(scope="module")
def family() -> Family:
    """One small video with outlier channels."""
    videos = [[draw_family("outlier channels", 3, num_chunks=2, num_frames=2, frame_tokens=70)]]
    return Family("outlier channels", videos, [], None)


@pytest.mark.parametrize(("codec", "correction"), [("int2", "measured"), ("int4", "measured"), ("bf16", "off")])
def test_with_bfloat16_history_it_measures_what_the_part_tensor_measures(
    family: Family, codec: str, correction: str
) -> None:
    readout = store(scheme_of(codec, family.videos, None), family.videos[0][0])
    got = outputs(readout, 0, is_corrected=True)["bf16"]
    error = relative_error(got, exact_output(readout, 0))
    expected = measure(readout, 0)[correction]["error"]
    torch.testing.assert_close(error, expected, rtol=0.02, atol=0.01)


def test_eight_bits_cost_little_next_to_two_and_much_next_to_eight(family: Family) -> None:
    results = {codec: measure_codec(family, codec) for codec in ("int8", "int2")}
    assert results["int8"]["fp8"]["mean"] > 3 * results["int8"]["bf16"]["mean"]
    assert abs(results["int2"]["loss"]) < 0.1
    ratio = results["int8"]["fp8"]["mean"] / results["int8"]["bf16"]["mean"]
    assert results["int8"]["loss"] == pytest.approx(ratio - 1, rel=0.02)


def test_a_larger_scale_than_needed_costs_nothing(family: Family, monkeypatch) -> None:
    """So a bound of the largest magnitude, known without decoding, is good enough."""
    exact = measure_codec(family, "int4")["fp8"]["mean"]
    to_fp8 = fp8.to_fp8

    def loose(x, num_kv_heads: int):
        scales = 8 * to_fp8(x, num_kv_heads)[1]
        return (x / scales[:, None, :, None]).to(torch.float8_e4m3fn), scales

    monkeypatch.setattr(fp8, "to_fp8", loose)
    assert measure_codec(family, "int4")["fp8"]["mean"] == pytest.approx(exact, rel=0.02)


def test_codecs_say_what_was_measured() -> None:
    results = json.loads((RESULTS / "fidelity_fp8.json").read_text())["results"]["fp8"]
    found = verdicts(results)
    assert list(found) == list(fp8.CODECS)
    for codec, survives in found.items():
        pair = CodecPair.read(codec)
        assert (pair.keys.survives_fp8 and pair.values.survives_fp8) == survives, codec


def test_the_verdict_is_that_of_the_worst_family() -> None:
    def family(**losses: float):
        summary = {"mean": 0.1}
        keys = {"bits": 2.0, "loss_error": 0.001, "bf16": summary, "fp8": summary}
        return {codec: {"loss": loss, **keys} for codec, loss in losses.items()}

    results = {"demo": family(int2=0.01, int4=0.01, klt2=0.5), "static scene": family(int2=-0.01, int4=0.02)}
    assert verdicts(results) == {"int2": True, "int4": False, "klt2": False}
    tables = fp8_tables(results)
    assert len(tables) == 2 and all(len(line) <= 80 for table in tables.values() for line in table.splitlines())

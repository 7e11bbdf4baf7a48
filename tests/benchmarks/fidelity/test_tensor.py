"""The part "tensor" on a small family."""

from __future__ import annotations

from fidelity import tensor
from fidelity.tensor import measure_family
from lib.samples import draw_family


def test_the_transform_codec_beats_equal_bits_where_there_is_something_to_share(monkeypatch) -> None:
    def small(name: str, seed: int):
        return draw_family(name, seed, num_chunks=2, num_frames=3, frame_tokens=42)

    monkeypatch.setattr(tensor, "draw_family", small)
    monkeypatch.setattr(tensor, "CALIBRATION_VIDEOS", 2)
    family = tensor.synthetic_family("low rank", tensor.Sampling(1, 9, ["klt2.25", "int2"]))
    results = measure_family(family)
    assert results["klt2.25"]["bits"] <= results["int2"]["bits"]  # 126 tokens in one page either way
    errors = [results[name]["corrections"]["off"]["error"]["mean"] for name in ("klt2.25", "int2")]
    assert errors[0] < 0.5 * errors[1]
    studied = tensor.study_corrections(family, "int2")
    assert {"off", "per key, paper", "b x 4", "measured, all", "log Z, 16"} <= set(studied["corrections"])

"""Words from numbers: who wins, by how much, and who does not."""

from __future__ import annotations

import pytest

from fidelity.answers import FORMS, answers


def row(storage: str, bits: float, psnr: float, correction: str = "off", factor: float | None = None) -> dict:
    values = [psnr - 1, psnr + 1]
    return {
        "storage": storage, "correction": correction, "factor": factor, "bits": bits, "psnr": values,
        "forced_psnr": values,
    }  # fmt: skip


VIDEO = [
    row("token2-g64", 2.5, 30.0), row("token2-g64", 2.5, 29.0, "formula"), row("token2-g64", 2.5, 32.0, "measured"),
    row("token2-g64", 2.5, 31.0, "formula", 0.5),
    row("token4-g64", 4.5, 40.0),
    row("int2", 2.25, 35.0), row("int2", 2.25, 36.0, "variance"),
    row("default", 2.0, 40.0), row("default", 2.06, 41.0, "own"),
    row("small", 1.44, 35.5), row("small", 1.5, 36.0, "own"),
    row("QVG tern", 2.7, 35.0), row("QVG-Pro tern", 5.0, 43.0), row("RTN2 g64", 2.4, 29.0),
    row("RTN4 g64", 4.4, 40.5), row("TurboQuant1", 1.2, 50.0),
]  # fmt: skip


def said(results: dict) -> str:
    return " ".join(" ".join(answers(results)).split())


def test_video_answers_say_who_wins_and_where_not() -> None:
    text = said({"video": VIDEO})
    assert "formula -1.00 ± 0.00 dB (2 of 2 prompts lose)" in text and "measured +2.00" in text
    assert "dB and its standard error in: token2-g64 formula -1.00" in text
    assert "psnr at b x 0.5 (31.00 dB)" in text
    assert "the best is default own (2.06 bits, 41.00 dB): +1.00 ± 0.00 dB" in text
    assert "the best int2 is int2 variance (2.25 bits, 36.00 dB): -4.00" in text
    assert "The default is default own" in text and "higher than that of 3 of 4 peers with as many bits or more" in text
    assert "the closest being RTN4 g64 off (4.40 bits, 40.50 dB) (+0.50 ± 0.00 dB)" in text
    assert "does not win against QVG-Pro tern off (5.00 bits, 43.00 dB) (-2.00 ± 0.00 dB)" in text
    assert "The small preset is small own" in text and "does not win against TurboQuant1" in text


def scheme(bits: float, error: float) -> dict:
    return {
        "bits": bits,
        "corrections": {"off": {"error": {"mean": 2 * error}}, "variance": {"error": {"mean": error}}},
    }


@pytest.mark.parametrize(("peer_error", "verdict"), [(0.5, "demo 0.100: none"), (0.05, "demo 0.100: QVG tern 0.050")])
def test_error_answers_name_the_peers_that_are_better(peer_error: float, verdict: str) -> None:
    tensor = {"studies": {}, "families": {"demo": {"klt2": scheme(2.0, 0.1), "QVG tern": scheme(2.7, peer_error)}}}
    assert verdict in said({"tensor": tensor, "presets": {"default": "klt2"}})
    assert "Output error" not in said({"tensor": tensor, "presets": {"default": "int2"}})


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [(0.02, "the formula removes 80 %"), (-0.02, "subtracts too much"), (-0.2, "the formula HURTS")],
)
def test_mass_answers_judge_the_formula(formula: float, verdict: str) -> None:
    shift = {name: 0.01 for name in FORMS} | {"off": 0.1, "per chunk, formula": formula}
    corrections = {name: {"dP": {"mean": value, "size": abs(value)}} for name, value in shift.items()}
    studies = {"token2-g64": {"demo": {"corrections": corrections}}}
    text = said({"tensor": {"studies": studies, "families": {}}, "presets": {}})
    assert verdict in text and "off +0.100" in text and "off 0.1000" in text

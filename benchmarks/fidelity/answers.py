"""Says in words what the numbers of fidelity.py show."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fidelity.fp8 import LARGEST_LOSS, verdicts
from lib.report import TABLE_WIDTH
from pagedvid.quality.metrics import mean_and_error

PAPER = "token2-g64"
INT4 = "token4-g64"
"""The headline compares with this one: round to nearest with step sizes per token, 4.5 bits."""
HEADLINE_BITS = 2.3
SMALL_BITS = 1.6
TWO_BITS = 3.0
"""A 2-bit quantizer takes fewer bits than this, with its metadata."""
DEFAULT = "default"
SMALLEST_LOSS = 0.05
"""Differences in dB below this are not mentioned."""
PEER_NAMES = ("RTN", "QuaRot", "TurboQuant", "KIVI", "QVG")
FORMS = {
    "off": "off",
    "per key, paper": "formula per key",
    "per chunk, formula": "formula per chunk",
    "per chunk, exact": "exact",
    "measured, 32": "measured",
    "log Z, 32": "fitted to log Z",
}
"""Corrections of the study that are quoted, and what they are called there."""
Row = Mapping[str, Any]


def answers(results: Mapping[str, Any]) -> list[str]:
    """One paragraph per answer, for the parts that ran."""
    texts = []
    if "tensor" in results:
        texts += mass_answers(results["tensor"])
    if "video" in results:
        rows = [row for row in results["video"] if row["factor"] is None]
        texts += paper_answer(rows) + sweep_answer(results["video"]) + headline_answer(rows)
        texts += peer_answers(rows)
    if "tensor" in results:
        texts += error_answers(results["tensor"], results["presets"])
    if "cost" in results:
        texts += cost_answer(results["cost"])
    if "fp8" in results:
        texts += fp8_answer(results["fp8"])
    return [textwrap.fill(text, TABLE_WIDTH) for text in texts]


def mass_answers(tensor: Mapping[str, Any]) -> list[str]:
    """How far a storage shifts the mass on cached keys, what each correction leaves, and which leaves least."""
    texts = []
    for storage, by_family in tensor["studies"].items():
        lines = []
        for family, result in by_family.items():
            shift = {name: summary["dP"]["mean"] for name, summary in result["corrections"].items()}
            shown = ", ".join(f"{text} {shift[name]:+.3f}" for name, text in FORMS.items())
            lines.append(f"{family}: {shown}; {_formula_verdict(shift['off'], shift['per chunk, formula'])}")
        names = next(iter(by_family.values()))["corrections"]
        size = {
            name: float(np.mean([result["corrections"][name]["dP"]["size"] for result in by_family.values()]))
            for name in names
        }
        least = ", ".join(f"{name} {size[name]:.4f}" for name in sorted(size, key=lambda name: size[name])[:3])
        texts.append(
            f"Shift of the cached mass (dP), {storage}. {'. '.join(lines)}. Least mean |dP| over heads and families: "
            f"{least} (off {size['off']:.4f}, formula {size['per chunk, formula']:.4f})."
        )
    return texts


def _formula_verdict(off: float, formula: float) -> str:
    if abs(formula) >= abs(off):
        return "the formula HURTS: it assumes independent errors, but those of redundant tokens are alike"
    if formula * off < 0:
        return "the formula subtracts too much: it assumes independent errors, but those of redundant tokens are alike"
    return f"the formula removes {100 * (1 - formula / off):.0f} %"


def paper_answer(rows: Sequence[Row]) -> list[str]:
    """PSNR gain of each correction on the paper's quantizer."""
    of_paper = {row["correction"]: row for row in rows if row["storage"] == PAPER}
    if "off" not in of_paper:
        return []
    off = of_paper["off"]
    parts = []
    for mode, row in of_paper.items():
        if mode != "off":
            gains = np.subtract(row["psnr"], off["psnr"]).tolist()
            mean, error = mean_and_error(gains)
            worse = sum(gain < 0 for gain in gains)
            parts.append(f"{mode} {mean:+.2f} ± {error:.2f} dB ({worse} of {len(gains)} prompts lose)")
    before = f"{np.mean(off['psnr']):.2f} dB at {off['bits']:.2f} bits"
    return [f"1. {PAPER} without correction: {before}; {', '.join(parts)}. {_hurt(rows)}"]


def sweep_answer(rows: Sequence[Row]) -> list[str]:
    """The best multiple of b."""
    texts = []
    for storage in sorted({str(row["storage"]) for row in rows if row["factor"] is not None}):
        swept = {row["factor"]: row for row in rows if row["storage"] == storage and row["factor"] is not None}
        modes = {"off": 0.0, "formula": 1.0}
        own = [row for row in rows if row["storage"] == storage and row["factor"] is None]
        swept |= {modes[row["correction"]]: row for row in own if row["correction"] in modes}
        parts = []
        for what in ("psnr", "forced_psnr"):
            best = max(swept, key=lambda factor: float(np.mean(swept[factor][what])))
            parts.append(f"{what.replace('_', ' ')} at b x {best:g} ({np.mean(swept[best][what]):.2f} dB)")
        factors = ", ".join(f"{factor:g}" for factor in sorted(swept))
        texts.append(f"Among b x {factors}, {storage} has its highest {' and its highest '.join(parts)}.")
    return texts


def _hurt(rows: Sequence[Row]) -> str:
    """The storages whose PSNR a correction lowers by more than the standard error."""
    off = {row["storage"]: row for row in rows if row["correction"] == "off"}
    hurt = []
    for row in rows:
        if row["correction"] != "off":
            mean, error = mean_and_error(np.subtract(row["psnr"], off[row["storage"]]["psnr"]).tolist())
            if mean < -max(error, SMALLEST_LOSS):
                hurt.append(f"{row['storage']} {row['correction']} {mean:+.2f} ± {error:.2f} dB")
    cases = "; ".join(hurt) or "no case"
    return f"A correction lowers the PSNR by more than {SMALLEST_LOSS} dB and its standard error in: {cases}."


def headline_answer(rows: Sequence[Row]) -> list[str]:
    """Few bits against uncorrected int4 with step sizes per token."""
    int4 = [row for row in rows if row["storage"] == INT4 and row["correction"] == "off"]
    small = [row for row in rows if row["bits"] <= HEADLINE_BITS and not is_peer(row)]
    if not int4 or not small:
        return []
    against = f"{INT4} uncorrected ({int4[0]['bits']:.2f} bits, {np.mean(int4[0]['psnr']):.2f} dB)"
    groups = {
        "the best": small,
        "the best with a correction": [row for row in small if row["correction"] != "off"],
        "the best int2": [row for row in small if row["storage"].startswith("int2")],
    }
    lines = []
    for what, rivals in groups.items():
        if rivals:
            best = max(rivals, key=lambda row: np.mean(row["psnr"]))
            lines.append(f"{what} is {describe(best)}: {versus(best, int4[0])}")
    return [f"2. At <= {HEADLINE_BITS} bits, against {against}: {'; '.join(lines)}."]


def peer_answers(rows: Sequence[Row]) -> list[str]:
    """The default and the small preset as shipped, against peers, each with its best correction."""
    peers = best_of_each([row for row in rows if is_peer(row)])
    default, small = shipped(rows, DEFAULT), shipped(rows, "small")
    texts = []
    if default is not None:
        rivals = [row for row in peers if row["bits"] >= default["bits"]]
        texts.append(_against("The default", default, rivals, "peers with as many bits or more"))
    if small is not None:
        rivals = [row for row in peers if row["bits"] < TWO_BITS]
        texts.append(_against("The small preset", small, rivals, f"peers below {TWO_BITS:g} bits"))
    return texts


def shipped(rows: Sequence[Row], preset: str) -> Row | None:
    """A preset with its own correction; None if it was not measured."""
    by_correction = {row["correction"]: row for row in rows if row["storage"] == preset}
    return by_correction.get("own", by_correction.get("off"))


def _against(what: str, own: Row, rivals: Sequence[Row], which: str) -> str:
    won = [row for row in rivals if np.mean(own["psnr"]) > np.mean(row["psnr"])]
    lost = [f"{describe(row)} ({versus(own, row)})" for row in rivals if row not in won]
    closest = max(won, key=lambda row: np.mean(row["psnr"]), default=None)
    text = f"3. {what} is {describe(own)}. Its PSNR is higher than that of {len(won)} of {len(rivals)} {which}"
    text += f", the closest being {describe(closest)} ({versus(own, closest)})." if closest else "."
    return text + (f" It does not win against {'; '.join(lost)}." if lost else "")


def error_answers(tensor: Mapping[str, Any], presets: Mapping[str, str]) -> list[str]:
    """By family, the peers whose output error is lower than a preset's, each with its best correction."""
    rivals = {
        DEFAULT: ("with as many bits or more", lambda own, bits: bits >= own),
        "small": (f"below {TWO_BITS:g} bits", lambda own, bits: bits < TWO_BITS),
    }
    texts = []
    for preset, (which, is_rival) in rivals.items():
        lines = []
        for family, by_scheme in tensor["families"].items():
            own = by_scheme.get(presets.get(preset))
            if own is not None:
                better = {
                    name: least_error(result)
                    for name, result in by_scheme.items()
                    if is_peer({"storage": name})
                    and is_rival(own["bits"], result["bits"])
                    and least_error(result) <= least_error(own)
                }
                lost = ", ".join(f"{name} {better[name]:.3f} at {by_scheme[name]['bits']:.2f} bits" for name in better)
                lines.append(f"{family} {least_error(own):.3f}: {lost or 'none'}")
        if lines:
            codec = f"{presets[preset]} ({preset})"
            texts.append(
                f"Output error of {codec} by family, and the peers {which} that have a lower one: {'; '.join(lines)}."
            )
    return texts


def cost_answer(rows: Sequence[Row]) -> list[str]:
    """Cost of encoding, compared with denoising."""
    parts = []
    for row in rows:
        encode, store = (f"{100 * row[name]:.1f} %" for name in ("encode_ratio", "store_ratio"))
        videos = "1 video" if row["videos"] == 1 else f"{row['videos']} videos at once"
        cache = f"{row['storage']} {row['correction']}, {videos}"
        parts.append(f"{cache}: encoding {encode}, all that storing adds {store}")
    return [f"4. Of the time of a chunk's denoise steps: {'; '.join(parts)}."]


def least_error(result: Mapping[str, Any]) -> float:
    """Output error with the best correction."""
    return float(min(summary["error"]["mean"] for summary in result["corrections"].values()))


def is_peer(row: Row) -> bool:
    """Whether it is a published quantizer."""
    return str(row["storage"]).startswith(PEER_NAMES)


def best_of_each(rows: Sequence[Row]) -> list[Row]:
    """Every storage with the correction that gives the highest PSNR."""
    best: dict[str, Row] = {}
    for row in rows:
        if row["storage"] not in best or np.mean(row["psnr"]) > np.mean(best[row["storage"]]["psnr"]):
            best[row["storage"]] = row
    return list(best.values())


def describe(row: Row) -> str:
    """Name, bits, PSNR."""
    return f"{row['storage']} {row['correction']} ({row['bits']:.2f} bits, {np.mean(row['psnr']):.2f} dB)"


def versus(own: Row, other: Row) -> str:
    """Difference prompt by prompt."""
    mean, error = mean_and_error(np.subtract(own["psnr"], other["psnr"]).tolist())
    return f"{mean:+.2f} ± {error:.2f} dB"


def fp8_answer(by_family: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which codecs lose next to nothing when their pages are decoded to 8-bit floats."""
    found = verdicts(by_family)
    survivors = [codec for codec, survives in found.items() if survives]
    others = [codec for codec, survives in found.items() if not survives]
    limit = f"{100 * LARGEST_LOSS:.0f} %"
    text = f"8-bit history. The error of attention grows by less than {limit} in every family with"
    return [f"{text} {', '.join(survivors) or 'no codec'}, by more with {', '.join(others) or 'no codec'}."]

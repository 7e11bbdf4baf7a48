"""The part "fp8": what it costs to decode a history to 8-bit floats (float8_e4m3fn) instead of bfloat16.

Cached chunks come back from storage, are rotated, and are read chunk by chunk: in bfloat16, or in 8 bits as flash-attn
3 reads them (attention/dense/torch_cpu_fp8.py), with one scale for the keys and one for the values of each chunk and
head. The chunk being denoised is read in bfloat16 either way, and the partials are merged by their log-sum-exp under
the correction that is the default for the codec.

bits         stored bits per element, mean of keys and values
bf16, fp8    relative error of the attention output against exact attention over what was stored; means over videos,
             layers, heads and forwards
loss         how much larger the error is with 8 bits, percent of the error with bfloat16, and its standard error over
             the videos
verdict      "fp8" where the loss is below 2 % in every family: `survives_fp8` of the codec's spec

Axes: C cached chunks, H heads, T tokens of a chunk, Q measured queries, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fidelity.tensor import DEMO, Family, Sampling, scheme_of, summarize
from lib.attention_error import QUERY_STRIDE, exact_output, relative_error, store
from lib.corrections import Readout, measured
from lib.report import format_table, note
from pagedvid.attention.dense.fp8 import to_fp8
from pagedvid.attention.dense.torch_cpu import TorchCpu
from pagedvid.attention.dense.torch_cpu_fp8 import TorchCpuFp8
from pagedvid.codecs.assignment import CodecPair
from pagedvid.quality.metrics import mean_and_error

CODECS = (
    *("bf16", "int8", "int4", "int4/int2", "int2", "int2-pair", "int2-pair-s8", "int2-post"),
    *("token8-g64", "token4-g64", "token2-g64", "token2-g32", "token2-g16"),
    *("hadamard4-g64", "hadamard2-g64", "hadamard2-g32", "hadamard2-g16"),
    *("klt4", "klt3", "klt2.25", "klt2", "klt1.5", "klt1", "klt0.5"),
)
LARGEST_LOSS = 0.02
"""Of the codec's own error."""
DIGITS = 5
Partials = tuple[Tensor, Tensor]
"""(outputs [C, Q, H, D], log-sum-exp [C, Q, H])."""
Results = Mapping[str, Mapping[str, Any]]
"""By family and codec: {"bits", "loss", "loss_error", "bf16" and "fp8": a summary of the error}."""


def measure_fp8(sampling: Sampling, name: str) -> dict[str, Any]:
    """The codecs, or those among `sampling.storages`, on one family."""
    family = replace(sampling, storages=()).draw(name)
    wanted = CODECS if sampling.storages is None else sampling.storages
    codecs = [
        codec for codec in CODECS if codec in wanted and not (_needs_tables(codec) and family.calibration is None)
    ]
    return {codec: measure_codec(family, codec) for codec in codecs}


def measure_codec(family: Family, codec: str) -> dict[str, Any]:
    """{"bits", "loss", "loss_error", "bf16", "fp8"} of one codec."""
    note(f"{family.name}: {codec} in 8 bits")
    scheme = scheme_of(codec, family.videos, family.calibration)
    bits: list[float] = []
    errors: dict[str, list[np.ndarray]] = {"bf16": [], "fp8": []}
    with torch.no_grad():
        for sample in (sample for samples in family.videos for sample in samples):
            readout = store(scheme, sample)
            bits.append((readout.stored.key_bits + readout.stored.value_bits) / 2)
            for number in range(len(sample.q_LHTD)):
                exact_HQD = exact_output(readout, number)
                for name, got_HQD in outputs(readout, number, is_corrected=not _needs_tables(codec)).items():
                    errors[name].append(relative_error(got_HQD, exact_HQD).double().numpy())
    shape = (len(family.videos), len(family.videos[0]), len(family.videos[0][0].q_LHTD), -1)
    values_VLFH = {name: np.stack(by_forward).reshape(shape) for name, by_forward in errors.items()}
    growth_V = (values_VLFH["fp8"] - values_VLFH["bf16"]).mean(axis=(1, 2, 3)) / values_VLFH["bf16"].mean()
    loss, error = mean_and_error(growth_V.tolist())
    summaries = {name: summarize(values) for name, values in values_VLFH.items()}
    return {"bits": sum(bits) / len(bits), "loss": round(loss, DIGITS), "loss_error": round(error, DIGITS), **summaries}


def outputs(readout: Readout, number: int, *, is_corrected: bool) -> dict[str, Tensor]:
    """Attention of one forward's queries over stored chunks and its own, [H, Q, D], with "bf16" and "fp8" history."""
    sample, stored, scale = readout.sample, readout.stored, readout.scale
    q_HQD = sample.rotated(sample.q_LHTD[number], -1)[:, ::QUERY_STRIDE]
    shift_CQH = _shift(readout, q_HQD) if is_corrected else torch.zeros(())
    current = sample.rotated(sample.current_k_LHTD[number], -1), sample.current_v_LHTD[number]
    own = TorchCpu()(*(x[None].transpose(1, 2).bfloat16() for x in (q_HQD, *current)), scale)
    q = q_HQD[None].transpose(1, 2).bfloat16().expand(len(stored.k_CHTD), -1, -1, -1)
    k, v = (x.transpose(1, 2) for x in (stored.k_CHTD, stored.v_CHTD))
    histories = {"bf16": TorchCpu()(q, k.bfloat16(), v.bfloat16(), scale), "fp8": fp8_partials(q, k, v, scale)}
    return {name: _merged(own, (out, lse - shift_CQH)) for name, (out, lse) in histories.items()}


def fp8_partials(q_CQHD: Tensor, k_CTHD: Tensor, v_CTHD: Tensor, scale: float) -> Partials:
    """Attention over keys and values rounded to 8 bits."""
    (k8, key_scales_CH), (v8, value_scales_CH) = (to_fp8(x, x.shape[2]) for x in (k_CTHD, v_CTHD))
    return TorchCpuFp8()(q_CQHD, k8, v8, scale, key_scales_CH, value_scales_CH)


def _shift(readout: Readout, q_HQD: Tensor) -> Tensor:
    """alpha * b, [C, Q, H]; 0 where nothing was rounded."""
    if torch.equal(readout.stored.k_CHTD, readout.exact_k_CHTD):
        return torch.zeros(())
    return measured(readout, q_HQD).squeeze(3).transpose(1, 2)


def _merged(own: Partials, history: Partials) -> Tensor:
    """[H, Q, D], in float32."""
    out, lse = (torch.cat(pair) for pair in zip(own, history, strict=True))
    return (lse.softmax(0)[..., None] * out.float()).sum(0).transpose(0, 1)


def _needs_tables(codec: str) -> bool:
    pair = CodecPair.read(codec)
    return pair.keys.needs_tables or pair.values.needs_tables


# ---------------------------------------------------------------- tables


def verdicts(results: Results) -> dict[str, bool]:
    """By codec, whether its history may be read in 8 bits: whether the loss is small in every family."""
    codecs = dict.fromkeys(codec for family in results.values() for codec in family)
    return {
        codec: all(family[codec]["loss"] < LARGEST_LOSS for family in results.values() if codec in family)
        for codec in codecs
    }


def fp8_tables(results: Results) -> dict[str, str]:
    """Tables by title."""
    tables = {
        f"8-bit history, {name}: relative error of the attention output": error_table(family)
        for name, family in results.items()
        if name == DEMO
    }
    return tables | {"8-bit history: percent by which the error grows, by family": loss_table(results)}


def error_table(family: Mapping[str, Any]) -> str:
    """One row per codec, by falling error."""
    rows = [
        (
            codec,
            f"{result['bits']:.2f}",
            f"{result['bf16']['mean']:.4f}",
            f"{result['fp8']['mean']:.4f}",
            f"{100 * result['loss']:.1f}",
            f"{100 * result['loss_error']:.1f}",
        )
        for codec, result in sorted(family.items(), key=lambda item: -item[1]["bf16"]["mean"])
    ]
    return format_table(("codec", "bits", "bf16", "fp8", "loss %", "+-"), rows)


def loss_table(results: Results) -> str:
    """One row per codec, a column per family, headed by the first word of its name."""
    rows = [
        (
            codec,
            *(f"{100 * family[codec]['loss']:.1f}" if codec in family else "-" for family in results.values()),
            "fp8" if survives else "bf16",
        )
        for codec, survives in verdicts(results).items()
    ]
    return format_table(("codec", *(name.split()[0] for name in results), "verdict"), rows)

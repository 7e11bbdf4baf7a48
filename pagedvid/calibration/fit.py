"""Calibration of `KltCodec` for a model: bases and importance from statistics of its layers.

Errors are weighted by what they do to the output of attention, to first order in the error e of a key or value, with p
the attention weights, o the output of a query q, and s the softmax scale:

    keys     output changes by sum_i p_i (s q . e_i) (v_i - o)   channels weighted by E[q q'], with queries un-rotated
                                                                 by each key's rotary angle; tokens by p_i |v_i - o|
    values   output changes by sum_i p_i e_i                     tokens weighted by p_i

Token weights are smooth over time, so their cosine transform over a block falls with frequency: errors that alternate
from frame to frame cancel. Its mean square at each frequency multiplies the variance when bits are allocated.

Axes: H KV heads, D head_dim, F frames of a block, N = F * D coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pagedvid.calibration.statistics import LayerStatistics, Observation
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import ConfigError

METRIC_FLOOR = 1e-4
"""Directions that queries hardly touch still count this share of the strongest one, since other queries may."""
SMALLEST_DEVIATION = 1e-6


def calibration_of(layers: Sequence[LayerStatistics], model: str, calibrated_on: str = "") -> Calibration:
    """The calibration for klt codecs from the statistics of each layer; `save_calibration` writes it to a file.

    `model` and `calibrated_on` are for people: the model's name, and what it was run on. Raises ConfigError if a layer
    saw no chunk, or no forward that reads one.
    """
    keys, values = (fit(layers, kind) for kind in ("keys", "values"))
    return Calibration.of(model, keys, values, calibrated_on)


def calibrate(layers: Sequence[Sequence[Observation]], kind: str, layout: BlockLayout) -> list[KltTables]:
    """Tables by layer from whole videos: `layers[l]` are the observations of layer l, with every chunk in one of them.

    Raises ConfigError for a kind other than "keys" and "values" or for no observations.
    """
    statistics = []
    for observations in layers:
        layer = LayerStatistics(layout)
        for seen in observations:
            for k_HTD, v_HTD in zip(seen.k_CHTD, seen.v_CHTD, strict=True):
                layer.add_chunk(k_HTD, v_HTD)
            layer.add_reading(seen)
        statistics.append(layer)
    return fit(statistics, kind)


def fit(layers: Sequence[LayerStatistics], kind: str) -> list[KltTables]:
    """Tables by layer. Raises ConfigError for a kind other than "keys" and "values", or a layer that saw nothing."""
    if kind not in ("keys", "values"):
        raise ConfigError(f"kind is {kind!r}; allowed are 'keys' and 'values'")
    if not layers or not all(layer.is_complete for layer in layers):
        raise ConfigError("a layer was not observed; run the model on a prompt, for more than one chunk")
    return [_fit(layer, kind) for layer in layers]


def _fit(layer: LayerStatistics, kind: str) -> KltTables:
    moments, weight_HF = (layer.keys, layer.key_weight_HF) if kind == "keys" else (layer.values, layer.value_weight_HF)
    covariance_HFDD = moments.covariance_HFDD()
    root_HDD = torch.eye(covariance_HFDD.shape[-1], dtype=torch.float32).expand_as(covariance_HFDD[:, 0])
    if kind == "keys":
        root_HDD = _square_root(layer.query_square_HDD)
    _, basis_HDD = torch.linalg.eigh(root_HDD @ covariance_HFDD.sum(1) @ root_HDD)
    analysis_HDD = root_HDD @ basis_HDD
    variance_HFD = torch.einsum("hdj,hfde,hej->hfj", analysis_HDD, covariance_HFDD, analysis_HDD)
    variance_HFD = variance_HFD.clamp(min=SMALLEST_DEVIATION**2)
    importance_HN = (variance_HFD * (weight_HF / weight_HF.mean(-1, keepdim=True))[..., None]).flatten(1)
    falling_HN, order_HN = importance_HN.sort(dim=-1, descending=True)
    return KltTables(
        layer.layout,
        (falling_HN / falling_HN.sum(-1, keepdim=True)).mean(0),
        moments.mean_HD(),
        analysis_HDD,
        variance_HFD.flatten(1).sqrt(),
        order_HN,
    )


def _square_root(metric_HDD: Tensor) -> Tensor:
    """Symmetric square root of the metric divided by its largest eigenvalue; eigenvalues are at least METRIC_FLOOR."""
    values_HD, vectors_HDD = torch.linalg.eigh(metric_HDD)
    root_HD = (values_HD / values_HD[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)).clamp(min=METRIC_FLOOR).sqrt()
    return (vectors_HDD * root_HD[:, None]) @ vectors_HDD.mT

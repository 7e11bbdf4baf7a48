"""How much a model's prediction changes with the attention output of a single head.

The same error of the output matters more in one head than in another, because other parts of the network follow it. So
some denoise steps are run again, with the output of one KV head's queries in one layer changed as a typical way of
storing chunks changes it, and the predictions are compared. The sensitivity of a head is the squared change of the
prediction divided by that of the output, so the error of an output times the sensitivity is an error of the
prediction. This works for any model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, SupportsIndex

from torch import Tensor

from pagedvid.calibration.profile import OutputChange, ProfilingCache
from pagedvid.engine.protocol import Attend, VideoModel
from pagedvid.engine.schedule import Range


class SensedModel:
    """A model whose profiled denoise steps are run again, for each layer, KV head and kind of change."""

    def __init__(self, model: VideoModel, cache: ProfilingCache) -> None:
        self._model = model
        self._cache = cache
        cache.wants_changes = True

    def __getattr__(self, name: str) -> Any:
        """Everything else is the model's own."""
        return getattr(self._model, name)

    def forward(self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Any], attend: Attend) -> Tensor:
        """The model's prediction, [T, C] like `latents_TC`; sensitivities are measured on some of the calls."""
        exact_TC = self._model.forward(latents_TC, ranges, conditions, attend)
        changes = self._cache.take_changes()
        for (kind, layer), of_ranges in changes.items():
            for head in range(of_ranges[0].change_GHnD.shape[1]):
                changed = _Changed(attend, layer, head, of_ranges)
                with self._cache.unwatched():
                    other_TC = self._model.forward(latents_TC, ranges, conditions, changed)
                error = float((other_TC.float() - exact_TC.float()).square().mean())
                self._cache.add_sensitivity(kind, layer, head, error, changed.output_error)
        return exact_TC


@dataclass(frozen=True)
class _Changed:
    """`attend` with another output in one layer and KV head."""

    attend: Attend
    layer: int
    head: int
    of_ranges: Sequence[OutputChange]

    @property
    def output_error(self) -> float:
        """Squared change of the output: summed over query heads and channels, mean over queries and ranges."""
        squares = [float(each.change_GHnD[:, self.head].square().sum((0, 2)).mean()) for each in self.of_ranges]
        return sum(squares) / len(squares)

    def __call__(self, layer: SupportsIndex, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /, **how: Any) -> Tensor:
        out_THD = self.attend(layer, q_THD, k_THD, v_THD, **how)
        if index(layer) != self.layer:
            return out_THD
        out_THD = out_THD.clone()
        for each in self.of_ranges:
            change_nGD = each.change_GHnD[:, self.head].transpose(0, 1)
            group = change_nGD.shape[1]
            heads = slice(self.head * group, (self.head + 1) * group)
            out_THD[each.range_.start : each.range_.stop, heads] += change_nGD.to(out_THD)
        return out_THD

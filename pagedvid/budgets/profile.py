"""A profile: what every choice of storage costs each head, measured on a model's own videos (calibration/profile.py).

An error is the squared change of the model's prediction, mean over its values, when only that one thing changes,
everything else being exact. (It is measured as the squared change of the attention output of one KV head's queries,
times the sensitivity of the prediction to that head: calibration/curves.py, sensitivity.py.)

    keys.error, values.error    float32 [P, L, H, R]      only these keys, or values, are stored in rung r of the ladder
    window.error                float32 [P, L, H, 2, W]   only this head looks back less far: to the newest w + 1 chunks
                                                          without and with the sinks; W = 0 if videos were too short

Axes: P prompts, L layers, H KV heads, R rungs, W recent chunks of the window. The file keeps the curves, not what is
chosen by them: budgets/spend.py does that for any number of bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.registry import LADDERS
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import ConfigError

NAMES = ("keys.error", "values.error", "window.error")
_WHOLE = ("page_rows", "chunk_tokens", "sink_chunks", "recent_chunks")


@dataclass(frozen=True, eq=False)
class Profile:
    """Error curves of a model, prompt by prompt."""

    ladder: str
    """"klt" or "int": whose rungs these are."""
    rungs: tuple[str, ...]
    """Names of codecs by rising bits."""
    page_rows: int
    """Of the pages that errors were measured on."""
    chunk_tokens: int
    sink_chunks: int
    recent_chunks: int
    """Of the window of the observed videos."""
    prompts: tuple[str, ...]
    keys_PLHR: Tensor
    values_PLHR: Tensor
    windows_PLH2W: Tensor

    @property
    def has_windows(self) -> bool:
        """Whether shorter look-backs were measured."""
        return self.windows_PLH2W.numel() > 0

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.keys_PLHR.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """KV heads of each layer."""
        return self.keys_PLHR.shape[2]

    def spread(self) -> Tensor:
        """How much prompts differ: standard deviation over mean of the errors of every table and rung, float32
        [2, L, H, R], keys before values; 0 where a rung has no error."""
        errors = torch.stack([self.keys_PLHR, self.values_PLHR])
        return errors.std(1, correction=0) / errors.mean(1).clamp(min=torch.finfo(torch.float32).tiny)


def with_profile(calibration: Calibration, profile: Profile) -> Calibration:
    """The calibration with a profile, to be saved in one file."""
    facts = {name: str(getattr(profile, name)) for name in _WHOLE}
    facts |= {"ladder": profile.ladder, "rungs": json.dumps(profile.rungs), "prompts": json.dumps(profile.prompts)}
    curves = zip(NAMES, (profile.keys_PLHR, profile.values_PLHR, profile.windows_PLH2W), strict=True)
    return calibration.including({name: x.float().cpu().contiguous() for name, x in curves}, facts)


def profile_of(calibration: Calibration) -> Profile | None:
    """The profile in a file; None: it has none. Raises ConfigError if it is damaged, or for rungs that do not exist."""
    if not any(name in calibration.tensors for name in NAMES):
        return None
    facts = calibration.facts
    try:
        numbers = {name: int(facts[name]) for name in _WHOLE}
        rungs, prompts = (_texts(facts[name]) for name in ("rungs", "prompts"))
        ladder = facts["ladder"]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"the profile of {calibration.model} does not describe itself ({error!r}); {_AGAIN}"
        ) from None
    if LADDERS.get(ladder) != rungs:
        raise ConfigError(
            f"the profile of {calibration.model} was measured on the rungs {', '.join(rungs)} of {ladder!r}; this "
            f"version has {dict(LADDERS)}. {_AGAIN}"
        )
    by_head = (len(prompts), calibration.num_layers, calibration.num_kv_heads)
    curves = (*by_head, len(rungs))
    has_windows = calibration.tensors.get("window.error", _NONE).numel() > 0
    windows = (*by_head, 2, numbers["recent_chunks"] if has_windows else 0)
    shapes = dict(zip(NAMES, (curves, curves, windows), strict=True))
    keys, values, window = (_checked(calibration.tensors, name, shape) for name, shape in shapes.items())
    return Profile(ladder, rungs, **numbers, prompts=prompts, keys_PLHR=keys, values_PLHR=values, windows_PLH2W=window)


_NONE = torch.empty(0, dtype=torch.float32)
_AGAIN = "make it again with `pagedvid calibrate` or `pagedvid profile`"


def _texts(written: str) -> tuple[str, ...]:
    """A list of texts. Raises ValueError for any other JSON."""
    texts = json.loads(written)
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{written[:40]} is not a list of texts")
    return tuple(texts)


def _checked(tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise ConfigError(f"{name} of the profile is {found} instead of torch.float32 {list(shape)}; {_AGAIN}")
    if not bool((torch.isfinite(tensor) & (tensor >= 0)).all()):
        raise ConfigError(f"{name} of the profile contains negative numbers, NaN or infinity; {_AGAIN}")
    return tensor

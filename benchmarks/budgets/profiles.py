"""The profiles that bits are spent by: the one of the model's klt tables, and one measured here for int codecs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lib.caches import REFERENCE
from lib.lab import Lab
from lib.report import note
from pagedvid.budgets.profile import Profile, profile_of
from pagedvid.calibration.profile import ProfilingCache, profile_from
from pagedvid.calibration.sensitivity import SensedModel
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.tables_file import Calibration, load_calibration
from pagedvid.errors import ConfigError
from pagedvid.models.registry import model_tables

AGAIN = "make it with `pagedvid calibrate`"


def shipped_profile(weights: Path | None) -> Profile:
    """The profile in the file of the model's klt tables. Raises ConfigError if there is none."""
    calibration = load_tables(weights)
    profile = profile_of(calibration)
    if profile is None:
        raise ConfigError(f"the klt tables of {calibration.model} have no profile; {AGAIN}")
    return profile


def measure_int_profile(lab: Lab) -> Profile:
    """The profile of the int ladder on the videos of `lab`, as a model without klt tables would have it."""
    return measure_profile(lab, means_only(load_tables(lab.weights)))


def measure_profile(lab: Lab, calibration: Calibration) -> Profile:
    """The profile of the ladder that the calibration has tables for, on the videos of `lab`."""
    spec = lab.caches.spec(REFERENCE)
    cache = ProfilingCache(spec, lab.caches.stream_bytes(spec), calibration=calibration)
    sensed = replace(lab, model=SensedModel(lab.model, cache))
    curves = []
    for number, request in enumerate(lab.requests):
        note(f"profile of {cache.ladder} codecs: prompt {number + 1} of {len(lab.requests)}")
        cache.begin(seed=number)
        replace(sensed, requests=[request]).loop(cache, lab.num_chunks).generate()
        curves.append(cache.curves())
    prompts = [request.prompt for request in lab.requests]
    return profile_from(cache, lab.window, prompts, curves, lab.model.geometry.chunk_tokens)


def means_only(calibration: Calibration) -> Calibration:
    """Without the tables of klt codecs."""
    layers = range(calibration.num_layers)
    keys, values = (torch.stack([calibration.mean(kind, layer) for layer in layers]) for kind in KINDS)
    layout = BlockLayout(calibration.tokens_per_frame, calibration.frames_per_block)
    return Calibration.of_means(calibration.model, layout, keys, values)


def load_tables(weights: Path | None) -> Calibration:
    """What codecs know of the demo model. Raises ConfigError if it has no such file."""
    path = model_tables("demo", weights)
    if path is None:
        raise ConfigError(f"there are no klt tables beside the weights in {weights}; {AGAIN}")
    return load_calibration(path)

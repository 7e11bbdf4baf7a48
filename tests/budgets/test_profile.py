"""Profiles in files: what is written is read, and a damaged one is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedvid.budgets.profile import NAMES, profile_of
from pagedvid.codecs.tables_file import load_calibration, save_calibration
from pagedvid.errors import ConfigError
from tests.budgets.profiles import calibration, profile, profiled


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "tables.safetensors"
    save_calibration(profiled(), path)
    loaded = profile_of(load_calibration(path))
    assert loaded is not None
    for name, value in vars(profile()).items():
        same = torch.equal(value, getattr(loaded, name)) if isinstance(value, torch.Tensor) else None
        assert same or value == getattr(loaded, name), name


def test_tables_without_a_profile_have_none():
    assert profile_of(calibration()) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[..., :-1].contiguous(), "instead of torch.float32"),
        (lambda x: x.double(), "float64"),
        (lambda x: -x - 1, "negative numbers"),
        (lambda x: x / 0, "NaN or infinity"),
        (None, "missing"),
    ],
)
def test_damaged_curves_are_refused(name, change, said):
    made = profiled()
    tensors = dict(made.tensors)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors[name])
    damaged = type(made)(**{**vars(made), "tensors": tensors})
    with pytest.raises(ConfigError, match=f"{name}.*{said}.*pagedvid profile"):
        profile_of(damaged)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"rungs": '["mean", "klt2"]'}, "was measured on the rungs mean, klt2 of 'klt'"),
        ({"ladder": "rope"}, "of 'rope'"),
        ({"rungs": "nonsense"}, "does not describe itself"),
        ({"prompts": "[]"}, "does not describe itself"),
        ({"page_rows": "many"}, "does not describe itself"),
    ],
)
def test_facts_that_make_no_sense_are_refused(facts, said):
    with pytest.raises(ConfigError, match=said):
        profile_of(profiled().including({}, facts))


def test_prompts_differ_by_their_spread():
    errors = profile().values_PLHR[:, 1, 0, 2]
    spread = float(profile().spread()[1, 1, 0, 2])
    assert spread == pytest.approx(float(errors.std(correction=0) / errors.mean()), rel=1e-5)
    same = replace(profile(), keys_PLHR=torch.ones(2, 1, 1, 7), values_PLHR=torch.ones(2, 1, 1, 7))
    assert torch.equal(same.spread(), torch.zeros(2, 1, 1, 7))

"""Names in the form of Wan's repository."""

from __future__ import annotations

import pytest

from pagedvid.models.wan.base.names import library_name
from tests.models.wan.base.published import converted_names


def test_names_become_what_diffusers_makes_of_them():
    for original, converted in converted_names(12).items():
        assert library_name(original) == converted


@pytest.mark.parametrize("prefix", ["", "model.", "generator.model.", "generator_ema.model._fsdp_wrapped_module."])
def test_what_training_wraps_around_a_name_is_taken_off(prefix):
    for original, converted in converted_names(1).items():
        assert library_name(prefix + original) == converted


@pytest.mark.parametrize("name", ["freqs", "model.img_emb.proj.0.weight", "_cls_pred_branch.0.weight"])
def test_names_that_this_model_does_not_have_are_left_alone(name):
    assert library_name(name) == name

"""Causal Wan models by name: how one is loaded.

`weights`: a file or folder in the names of Wan's repository (checkpoint.py), a transformer's folder in the layout of
diffusers, or a whole pipeline in it.
"""

from __future__ import annotations

from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.models.wan.base.family import WanFamily
from pagedvid.models.wan.causal.pipeline import WanCausal
from pagedvid.models.wan.causal.spec import PUBLISHED, wan_causal_schedule

FAMILY = WanFamily("WanTransformer3DModel", WanCausal, wan_causal_schedule)


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    return FAMILY.spec(config, *PUBLISHED[config.name])

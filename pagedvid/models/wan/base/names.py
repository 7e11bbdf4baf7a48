"""Names of the original Wan repository, and what diffusers' transformers call the same tensors.

They differ in words only: no tensor changes its shape (convert_wan_to_diffusers.py and
convert_skyreelsv2_to_diffusers.py among diffusers' scripts). SkyReels-V2 has the same modules, and some for the frame
rate.
"""

from __future__ import annotations

import re

from pagedvid.models.common.checkpoint_names import plain_name

_OUTSIDE = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "patch_embedding": "patch_embedding",
    "head.head": "proj_out",
    "fps_projection.0": "fps_projection.net.0.proj",
    "fps_projection.2": "fps_projection.net.2",
}
"""Modules outside of the blocks, both ways of naming."""
_INSIDE = {
    "self_attn": "attn1",
    "cross_attn": "attn2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",
}
"""Modules of a block; Wan's norm3 comes before cross-attention, and its norm1 and norm2 have no weights."""
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}


def library_name(published: str) -> str:
    """The name in diffusers' transformer of a published tensor. Names that Wan does not have are returned unchanged,
    those of the transformer itself among them."""
    name = plain_name(published)
    if name == "head.modulation":
        return "scale_shift_table"
    module, _, leaf = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}.{leaf}"
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        return f"blocks.{match[1]}.{_name_in_block(match[2])}"
    return published


def _name_in_block(name: str) -> str:
    if name == "modulation":
        return "scale_shift_table"
    module, _, leaf = name.rpartition(".")
    if not module:
        return name
    attention, _, part = module.partition(".")
    if attention in ("self_attn", "cross_attn") and part in _ATTENTION:
        return f"{_INSIDE[attention]}.{_ATTENTION[part]}.{leaf}"
    return f"{_INSIDE.get(module, module)}.{leaf}"

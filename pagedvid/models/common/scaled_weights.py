"""Eight-bit weights with their scale next to them, as ComfyUI writes them: which tensors belong together.

    x.weight                            float8 codes [O, I]
    x.scale_weight or x.weight_scale    one number, or one for each row; weight = codes * scale
    x.scale_input, x.input_scale,       of programs that quantize what goes in, too, or say what the file is; not needed
    x.comfy_quant, scaled_fp8           here

Other scales, such as one for each block of a row, are not known; such files are refused (files/tensor_files.py).

Axes: O outputs (rows), I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from torch import Tensor

from pagedvid.files.tensor_files import EIGHT_BIT_DTYPES, PLAIN_DTYPES, TensorFacts

SCALES = ("scale_weight", "weight_scale")
NOT_NEEDED = frozenset({"scale_input", "input_scale", "comfy_quant", "scaled_fp8"})


def scale_of_weights(facts: Mapping[str, TensorFacts]) -> dict[str, str]:
    """The name of the scale by the name of the weight. Empty where weights in eight bits have no scales; and where some
    have a scale and others do not, since nobody knows what the others are."""
    found = {}
    for name, weight in facts.items():
        if weight.dtype not in EIGHT_BIT_DTYPES or name.rpartition(".")[2] in NOT_NEEDED:
            continue
        module, _, leaf = name.rpartition(".")
        scales = [scale for kind in SCALES if (scale := f"{module}.{kind}") in facts]
        if leaf != "weight" or len(scales) != 1 or not _fits(facts[scales[0]], weight):
            return {}
        found[name] = scales[0]
    return found


def _fits(scale: TensorFacts, weight: TensorFacts) -> bool:
    num_rows = weight.shape[0] if weight.shape else 1
    is_of_rows = scale.shape in ((num_rows,), (num_rows, *(1 for _ in weight.shape[1:])))
    return scale.dtype in PLAIN_DTYPES and (prod(scale.shape) == 1 or is_of_rows)


def is_of_scaled_weights(name: str) -> bool:
    """Whether a tensor is a scale or says something about scales."""
    leaf = name.rpartition(".")[2]
    return leaf in SCALES or leaf in NOT_NEEDED


def scaled(codes: Tensor, scale: Tensor) -> Tensor:
    """The weights, float32 in the shape of the codes."""
    return codes.float().mul_(scale.float().reshape(-1, *(1 for _ in codes.shape[1:])))

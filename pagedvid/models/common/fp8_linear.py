"""Linear layers whose weights stay in eight bits: e4m3 codes, and a float32 scale for each row.

    y = x W^T + bias,    W = codes * row_scales

W is decoded in every call, to the dtype of x, and gone after it: this saves memory and costs a little time. Kernels
that multiply codes (`torch._scaled_mm`) are not used; they want x in eight bits, too.

Axes: O outputs (rows), I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
LARGEST_CODE = 448.0
"""The largest number of e4m3."""


class Fp8Linear(nn.Module):
    """Takes the place of a linear layer; `hold` gives it its weights. Parameters have the names of the layer's."""

    def __init__(self, linear: nn.Linear) -> None:
        """Keeps the layer's bias, and the device and shape of its weights."""
        super().__init__()
        weight = linear.weight
        self.weight = nn.Parameter(torch.empty_like(weight, dtype=FP8), requires_grad=False)
        self.bias = linear.bias
        self.row_scales: Tensor
        # Not persistent: no checkpoint has them, they are made with the codes.
        scales_O1 = torch.empty(len(weight), 1, dtype=torch.float32, device=weight.device)
        self.register_buffer("row_scales", scales_O1, persistent=False)

    def hold(self, weight_OI: Tensor, published_scale: Tensor | None = None) -> None:
        """Takes weights, float32. `published_scale`: see `row_codes`."""
        codes_OI, self.row_scales = row_codes(weight_OI, published_scale)
        self.weight = nn.Parameter(codes_OI, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that it replaces: [..., I] -> [..., O] in the dtype of x, which is that of the bias."""
        weight_OI = self.weight.to(x.dtype).mul_(self.row_scales)
        return functional.linear(x, weight_OI, self.bias)


def row_codes(weight_OI: Tensor, published_scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes e4m3 [O, I] and scales float32 [O, 1], whose product is at most 1/16 of a weight away from it, or 1/1024 of
    its row's scale.

    `published_scale`: what the codes of the file were multiplied by, one number or one per row. Weights that are still
    multiples of it get their old codes back; rounding them twice would double the error.
    """
    if published_scale is not None:
        scales_O1 = published_scale.to(weight_OI).reshape(-1, 1).expand(len(weight_OI), 1).contiguous()
        codes_OI = (weight_OI / scales_O1).to(FP8)
        if torch.equal(codes_OI.float() * scales_O1, weight_OI):
            return codes_OI, scales_O1
    largest_O1 = weight_OI.abs().amax(dim=1, keepdim=True)
    scales_O1 = torch.where(largest_O1 > 0, largest_O1 / LARGEST_CODE, torch.ones_like(largest_O1))
    return (weight_OI / scales_O1).clamp_(-LARGEST_CODE, LARGEST_CODE).to(FP8), scales_O1


def use_fp8(module: nn.Module) -> None:
    """Puts an `Fp8Linear` in the place of every linear layer inside `module`; all other layers stay."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, Fp8Linear(child))

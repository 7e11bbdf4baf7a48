"""What do weights in eight bits and blocks in host memory save, what do they cost in time, and what do they change?

A Wan transformer of published width with fewer blocks and random weights goes through the loader in each form and
predicts the velocity of the same latents.

    device, host    bytes of weights there; on a CPU the device is a second copy in the same memory
    error           relative difference of the velocity to the plain one
    seconds         of a forward, median over rounds in which all forms run in turn; ratio to plain. On a CPU they are
                    of processor time, which other programs disturb less, and all threads together

    python benchmarks/weights.py
    python benchmarks/weights.py --device cuda --dtype bfloat16 --blocks 30
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from torch import Tensor

from lib.report import format_table, make_parser, name_after_device, note, use_threads, write_report
from pagedvid.config.sections import DTYPES, ModelConfig
from pagedvid.models.common.offload import BLOCKS_ON_DEVICE
from pagedvid.models.wan.base.weights import library_config, load_transformer

CLASS = "WanTransformer3DModel"
WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
"""Of the 1.3B model."""
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fp8": {"weights_dtype": "fp8"},
    "offload": {"offload": True},
    "fp8, offload": {"weights_dtype": "fp8", "offload": True},
}


@dataclass(frozen=True)
class Loaded:
    """A transformer in one form, and where its weights are."""

    transformer: Any
    device_bytes: int
    host_bytes: int


def write_model(folder: Path, num_blocks: int, seed: int) -> None:
    """Random weights in the layout of diffusers."""
    torch.manual_seed(seed)
    getattr(diffusers, CLASS)(**WIDTH, num_layers=num_blocks).save_pretrained(folder)


def load(folder: Path, arguments: argparse.Namespace, form: dict[str, Any]) -> Loaded:
    """Through the loader of `pagedvid generate`."""
    config = ModelConfig(name="self-forcing", device=arguments.device, dtype=arguments.dtype, **form)
    sizes = library_config(folder, CLASS)
    assert sizes is not None
    transformer = load_transformer(CLASS, sizes, folder, config)
    everything, blocks = num_bytes(transformer), num_bytes(transformer.blocks)
    if not config.offload:
        return Loaded(transformer, everything, 0)
    on_device = BLOCKS_ON_DEVICE * num_bytes(transformer.blocks[0])
    return Loaded(transformer, everything - blocks + on_device, blocks)


def num_bytes(module: Any) -> int:
    """Of parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def inputs(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Latents of 480 x 832 pixels or less, a timestep, rows of text."""
    draw = torch.Generator().manual_seed(arguments.seed)
    dtype = getattr(torch, arguments.dtype)
    latents = torch.randn(1, 16, arguments.frames, arguments.rows, 2 * arguments.rows, generator=draw)
    text = torch.randn(1, 512, 4096, generator=draw)
    return (
        latents.to(arguments.device, dtype),
        torch.tensor([700], device=arguments.device),
        text.to(arguments.device, dtype),
    )


def timed(forward: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    """Seconds of a call, and what it gives."""
    if device == "cpu":
        started = time.process_time()
        out = forward()
        return time.process_time() - started, out
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    out = forward()
    torch.cuda.synchronize(device)
    return time.perf_counter() - started, out


@torch.no_grad()
def main() -> None:
    parser = make_parser("weights", __doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of the model (default: float32)")
    parser.add_argument("--blocks", type=int, default=4, help="blocks of the transformer (default: 4)")
    parser.add_argument("--frames", type=int, default=3, help="latent frames (default: 3)")
    parser.add_argument("--rows", type=int, default=30, help="rows of the latent frame; columns are twice as many")
    parser.add_argument("--rounds", type=int, default=5, help="forwards of each form (default: 5)")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    device_name = name_after_device(arguments, "weights") if arguments.device != "cpu" else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), arguments.blocks, arguments.seed)
        forms = {name: load(Path(folder), arguments, form) for name, form in FORMS.items()}
    given = inputs(arguments)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    velocities: dict[str, Tensor] = {}
    for number in range(arguments.rounds + 1):
        for name, loaded in forms.items():
            taken, velocity = timed(lambda loaded=loaded: loaded.transformer(*given)[0], arguments.device)
            if number:  # the first forward of each is not counted
                seconds[name].append(taken)
            velocities[name] = velocity.float()
        note(f"round {number} of {arguments.rounds}")
    plain = velocities["plain"]
    results = [
        {
            "form": name,
            "device_bytes": loaded.device_bytes,
            "host_bytes": loaded.host_bytes,
            "error": float((velocities[name] - plain).norm() / plain.norm()),
            "seconds": median(seconds[name]),
        }
        for name, loaded in forms.items()
    ]
    rows = [
        (
            row["form"],
            f"{row['device_bytes'] / 1e6:.1f} MB",
            f"{row['host_bytes'] / 1e6:.1f} MB",
            f"{row['error']:.4f}",
            f"{row['seconds']:.3f}",
            f"{row['seconds'] / results[0]['seconds']:.2f}",
        )
        for row in results
    ]
    print(format_table(("weights", "device", "host", "error", "seconds", "ratio"), rows))
    write_report(arguments, "weights", {"device": device_name, "rows": results})


if __name__ == "__main__":
    main()

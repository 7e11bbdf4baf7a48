"""`pagedvid env`: versions, devices, and which attention backends and libraries can run here, with reasons."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata
from textwrap import fill
from typing import TYPE_CHECKING, Any

from pagedvid import __version__
from pagedvid.cli.options import by_rule
from pagedvid.config.rules import whole
from pagedvid.config.sections import DEVICE

if TYPE_CHECKING:
    import torch

LINE_WIDTH = 80
PACKAGES = (
    "torch",
    "triton",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "xformers",
    "numpy",
    "av",
    "pillow",
    "rich",
)


def add_parser(subparsers: Any) -> None:
    """Adds `env`."""
    parser = subparsers.add_parser("env", help="versions, devices and backends", description=__doc__)
    parser.add_argument(
        "--device",
        type=by_rule(DEVICE),
        help="the device that backends have to run on, such as cuda (default: cuda if there is one, else cpu)",
    )
    parser.add_argument(
        "--head-dim", type=by_rule(whole(1, 2**12)), default=128, help="head size of the model (default: 128)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints everything and returns the exit code."""
    import torch

    has_cuda = torch.cuda.is_available()
    device = torch.device(args.device or ("cuda" if has_cuda else "cpu"))
    sections = {
        "versions": _versions(),
        "devices": _devices(has_cuda),
        f"backends on {device}, best first": _backends(device, args.head_dim),
        f"libraries for dense keys on {device}, best first": _providers(device, args.head_dim),
        f"libraries for history in 8 bits on {device}": _fp8_providers(device, args.head_dim),
    }
    for title, rows in sections.items():
        width = max(len(name) for name, _ in rows)
        print(title)
        for name, text in rows:
            print(fill(text, LINE_WIDTH, initial_indent=f"  {name:{width}}  ", subsequent_indent=" " * (width + 4)))
    return 0


def _versions() -> list[tuple[str, str]]:
    rows = [("pagedvid", __version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _devices(has_cuda: bool) -> list[tuple[str, str]]:
    import torch

    rows = [("cpu", f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")]
    for number in range(torch.cuda.device_count() if has_cuda else 0):
        found = torch.cuda.get_device_properties(number)
        memory = found.total_memory / 2**30
        rows.append(
            (f"cuda:{number}", f"{found.name}, compute capability {found.major}.{found.minor}, {memory:.1f} GiB")
        )
    return rows


def _backends(device: torch.device, head_dim: int) -> list[tuple[str, str]]:
    from pagedvid.attention.backend import backend_reasons
    from pagedvid.cache.spec import CacheSpec

    reasons = backend_reasons(CacheSpec(num_layers=1, num_kv_heads=1, head_dim=head_dim), device)
    return [(name, _verdict(why)) for name, why in reasons.items()]


def _providers(device: torch.device, head_dim: int) -> list[tuple[str, str]]:
    import torch

    from pagedvid.attention.dense.choice import provider_reasons

    return [(name, _verdict(why)) for name, why in provider_reasons(device, torch.bfloat16, head_dim).items()]


def _fp8_providers(device: torch.device, head_dim: int) -> list[tuple[str, str]]:
    import torch

    from pagedvid.attention.dense.choice import fp8_provider_reasons

    return [(name, _verdict(why)) for name, why in fp8_provider_reasons(device, torch.bfloat16, head_dim).items()]


def _verdict(reasons: list[str]) -> str:
    return f"no: {'; '.join(reasons)}" if reasons else "yes"

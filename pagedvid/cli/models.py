"""`pagedvid models`: the models that `pagedvid capacity` knows, from the cards in configs/models."""

from __future__ import annotations

import argparse
from typing import Any

from pagedvid.capacity.card_files import all_cards
from pagedvid.capacity.cards import ModelCard
from pagedvid.capacity.weights import weight_formats
from pagedvid.cli.capacity_report import Report, columns
from pagedvid.cli.options import path_flag
from pagedvid.units import format_bytes


def add_parser(subparsers: Any) -> None:
    """Adds `models`."""
    parser = subparsers.add_parser("models", help="list the models that `capacity` knows", description=__doc__)
    parser.add_argument("--models", metavar="DIR", type=path_flag, help="folder with more model cards")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints one line per card and returns the exit code."""
    cards = all_cards(args.models)
    rows = [_facts(card, str(file)) for card, file in cards.values()]
    cells = [
        (
            card.name,
            f"{card.num_layers} x {card.num_kv_heads} x {card.head_dim}",
            str(card.resolution),
            str(card.tokens_per_frame(card.resolution)),
            str(card.frames_per_chunk),
            str(card.window),
            format_bytes(_second_bytes(card)),
        )
        for card, _ in cards.values()
    ]
    headers = ("model", "layers x KV x dim", "pixels", "tokens", "chunk", "window", "bf16/s")
    lines = [
        *columns(headers, cells),
        "",
        "tokens: of one latent frame. chunk: latent frames. window: sink + recent chunks,",
        "or frames rebuilt for every chunk. bf16/s: keys and values of a second of video.",
        "For another model, write a YAML file like those in configs/models: --models DIR.",
    ]
    print(Report({}, rows, lines).render(args.format))
    return 0


def _second_bytes(card: ModelCard) -> int:
    """Keys and values of one second of video in BF16, all branches."""
    size = card.stream_size(card.resolution, card.window)
    tokens = card.tokens_per_frame(card.resolution) * card.latent_frames_per_second
    return int(size.num_branches * card.shape.bf16_bytes(1) * tokens)


def _facts(card: ModelCard, file: str) -> dict[str, object]:
    weights = {name: size.device for name, size in weight_formats(card).items()}
    return {
        "model": card.name,
        "title": card.title,
        "num_layers": card.num_layers,
        "num_query_heads": card.num_query_heads,
        "num_kv_heads": card.num_kv_heads,
        "head_dim": card.head_dim,
        "original_copies": card.original_copies,
        "branches": " ".join(card.branches),
        "resolution": str(card.resolution),
        "tokens_per_frame": card.tokens_per_frame(card.resolution),
        "latent_frames_per_second": card.latent_frames_per_second,
        "frames_per_chunk": card.frames_per_chunk,
        "denoise_steps": card.denoise_steps,
        "window": str(card.window),
        "bf16_bytes_per_second": _second_bytes(card),
        "weights_bf16_bytes": weights.get("bf16"),
        "weights_fp8_bytes": weights.get("fp8"),
        "file": file,
    }

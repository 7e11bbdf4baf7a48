"""How many streams of every known model fit on one GPU? Arithmetic only; takes seconds.

Every model has its own resolution and window, and its weights in BF16 on the device (fp8 if only those fit).

    python benchmarks/capacity.py --gpu h100
    python benchmarks/capacity.py --readme FILE      # replaces the table between the capacity markers of a page
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lib.pages import markdown, replace_table
from lib.report import format_table, make_parser, write_report
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.card_files import all_cards
from pagedvid.capacity.cards import ModelCard
from pagedvid.capacity.gpus import gpu_memory, gpu_names
from pagedvid.capacity.sizing import Answer, Question, answers
from pagedvid.capacity.weights import weight_formats
from pagedvid.errors import CapacityError
from pagedvid.units import GIB

CODECS = {name: StreamCodecs(name) for name in ("bf16", "int8", "int4", "int2")}
COLUMNS = ("bf16", "int4", "int2")
HEADERS = ("model", "window", "GB per stream", *COLUMNS, "history, s")


def size_up(card: ModelCard, memory_bytes: int) -> tuple[str, list[Answer]]:
    """(number format of the weights, answers); no answers if nothing fits."""
    for weights in [name for name in ("bf16", "fp8") if name in weight_formats(card)]:
        question = Question(card, card.resolution, card.window, memory_bytes, weights)
        try:
            return weights, answers(question, CODECS)
        except CapacityError:
            continue
    return "no weights format", []


def row_of(card: ModelCard, weights: str, found: Sequence[Answer]) -> tuple[str, ...]:
    """One row of the table."""
    name = card.name if weights == "bf16" else f"{card.name} ({weights})"
    if not found:
        return (card.name, str(card.window), *("-" for _ in HEADERS[2:]))
    by_name = {answer.name: answer for answer in found}
    bf16, int2 = by_name["bf16"], by_name["int2"]
    return (
        name,
        str(card.window),
        f"{bf16.stream_bytes / 1e9:.2g} -> {int2.stream_bytes / 1e9:.2g}",
        *(short(by_name[name].num_streams) for name in COLUMNS),
        f"{short(bf16.longest_seconds)} -> {short(int2.longest_seconds)}",
    )


def short(number: float) -> str:
    """Two or three digits: 12.3, 456, 79k."""
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.0f}k"


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser("capacity", __doc__)
    parser.add_argument("--gpu", default="h100", choices=gpu_names(), metavar="NAME", help="default: h100")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the table into this page")
    arguments = parser.parse_args(argv)
    run(arguments)


def run(arguments: argparse.Namespace) -> None:
    memory_bytes = gpu_memory(arguments.gpu)
    rows, results = [], []
    for card, _ in all_cards().values():
        weights, found = size_up(card, memory_bytes)
        rows.append(row_of(card, weights, found))
        results.append(facts_of(card, weights, found))
    print(f"one {arguments.gpu}, {memory_bytes / GIB:.1f} GiB usable\n")
    print(format_table(HEADERS, rows))
    print("\nGB per stream: pages at its peak, bf16 -> int2. Columns bf16 to int2: streams that fit.")
    print("history: the longest that a single stream can keep. Activations and VAE are not counted.")
    if arguments.readme:
        replace_table(arguments.readme, "capacity", markdown(HEADERS, rows))
        print(f"table written into {arguments.readme}")
    write_report(arguments, "capacity", {"memory_bytes": memory_bytes, "models": results})


def facts_of(card: ModelCard, weights: str, found: Sequence[Answer]) -> dict[str, Any]:
    """What the JSON file says about one model."""
    return {
        "model": card.name,
        "resolution": str(card.resolution),
        "window": str(card.window),
        "weights": weights,
        "codecs": {
            answer.name: {
                "bits_per_value": answer.bits_per_value,
                "stream_bytes": answer.stream_bytes,
                "ratio_to_bf16": answer.ratio_to_bf16,
                "num_streams": answer.num_streams,
                "longest_window": str(answer.longest),
                "longest_seconds": answer.longest_seconds,
            }
            for answer in found
        },
    }


if __name__ == "__main__":
    main()

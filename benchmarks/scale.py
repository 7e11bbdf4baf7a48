"""How far does one service go on a thousand GPUs? A minute on idle cores.

Three kinds of numbers, and each is named in the tables and in the JSON file:

assumed     tokens per second of a GPU (--tokens-per-second), network (--network), viewers of a stream (--viewers), the
            arrivals (tools/make_trace.py)
simulated   a day of arrivals at so many GPUs, by the engine's own admission (pagedvid capacity --trace); a GPU has at
            most as many streams as it keeps up with at the model's speed (pagedvid capacity --sustain)
measured    here, with the service's own classes: what a chunk costs the HTTP process. us are microseconds of computing;
            where the disk is waited for, of time. Nothing was ever run on a thousand GPUs

From these: with how many streams each resource of one HTTP process is full, in proportion. `replicas encode` and
`replicas encode and write` are designs that are not built; their costs are the measured ones without what would move.
`others` is how many cores were in use when the program began: above a few tenths, the figures are not for idle cores.

    python benchmarks/scale.py
    python benchmarks/scale.py --model krea-14b --tokens-per-second 20000
    python benchmarks/scale.py --readme docs/scale.md      # replaces the tables of a page
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lib.pages import markdown, replace_table
from lib.report import format_table, make_parser, note, write_report
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.cards import ModelCard
from pagedvid.capacity.gpus import gpu_memory, gpu_names
from pagedvid.capacity.simulate import Fleet, simulate
from pagedvid.capacity.simulation_result import Simulation
from pagedvid.capacity.sizing import CODEC_CHOICES, Question
from pagedvid.capacity.sustain import parse_rate, sustained
from pagedvid.capacity.trace import read_trace
from pagedvid.cli.cores import cores_used_by_others
from scaling.driver_costs import bookkeeping, encoding, moving_frames, queueing, replicas_costs, watching, writing
from scaling.limits import Resource, UnitCosts, Viewing, designs, num_services
from scaling.remote_costs import remote_costs
from scaling.tables import (
    COSTS_HEADERS,
    DAY_HEADERS,
    LIMITS_HEADERS,
    Table,
    advice,
    cost_rows,
    day_rows,
    limit_rows,
)
from scaling.viewer_costs import viewer_costs

MAKE_TRACE = Path(__file__).resolve().parents[1] / "tools" / "make_trace.py"
CODEC = "int2"


def streams_of_a_gpu(arguments: argparse.Namespace, question: Question) -> int:
    """Live streams with which a GPU keeps up."""
    found = sustained(question, question.card.frames_per_second, parse_rate(arguments.tokens_per_second))
    if found.num_streams == 0:
        raise SystemExit(
            f"a GPU with {arguments.tokens_per_second} tokens/s does not keep up with one stream of "
            f"{question.card.name}; give a higher --tokens-per-second"
        )
    return found.num_streams


def day(arguments: argparse.Namespace, question: Question, streams_each: int) -> Simulation:
    """What becomes of the arrivals of a day."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "day.jsonl"
        flags = {"streams": arguments.sessions, "median-seconds": arguments.median_seconds, "seed": arguments.seed}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        subprocess.run([sys.executable, str(MAKE_TRACE), *words, "--out", str(path)], check=True, capture_output=True)
        arrivals = read_trace(path, question)
    return simulate(Fleet.of(question, CODEC_CHOICES[CODEC], arrivals, arguments.gpus, streams_each), arrivals)


def measure(arguments: argparse.Namespace, card: ModelCard, streams_each: int) -> UnitCosts:
    """What a chunk of this model costs, in seconds rather than minutes."""
    resolution, few = card.resolution, arguments.repetitions
    num_frames = card.frames_per_chunk * card.vae_stride[0] * card.patch[0]
    frames = moving_frames(num_frames, resolution.height, resolution.width, arguments.seed)
    encode, fragment_bytes = encoding(frames, few)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        (Path(folder) / "files").mkdir()
        append, row = writing(fragment_bytes, Path(folder) / "files", 10 * few)
        bookkeeping_us = bookkeeping(Path(folder) / "chunks", 4 * few, 2 * few)
        watching_us = watching(Path(folder) / "live", 20 * few, 0.4 * few)
        viewer = viewer_costs(Path(folder) / "viewers", frames, few)
    replicas = replicas_costs(arguments.gpus, streams_each, 4 * few)
    remote = remote_costs(frames, fragment_bytes, 10 * few)
    return UnitCosts(
        encode_us=encode.cpu_us,
        append_us=append.wall_us,
        row_us=row.wall_us,
        bookkeeping_us=bookkeeping_us,
        watching_us=watching_us,
        hear_us=replicas["hear"].cpu_us,
        queue_us=queueing(1000 * few),
        place_us=replicas["place"].cpu_us,
        stats_us=replicas["stats"].cpu_us,
        call_us=remote["empty"],
        call_with_fragment_us=remote["fragment"],
        call_with_frames_us=remote["frames"],
        look_us=viewer["look"],
        megabyte_us=viewer["megabyte"],
        store_bytes_per_second=remote["frames_bytes_per_second"],
        frames_bytes=frames.nbytes,
        fragment_bytes=fragment_bytes,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Simulates, measures, prints the tables, writes the JSON file."""
    parser = make_parser("scale", __doc__)
    parser.add_argument("--model", default="self-forcing", help="one of `pagedvid models` (default: self-forcing)")
    parser.add_argument("--gpu", default="h100", choices=gpu_names(), metavar="NAME", help="default: h100")
    parser.add_argument("--gpus", type=int, default=1000, help="how many of them (default: 1000)")
    parser.add_argument("--sessions", type=int, default=100_000, help="arrivals of a day (default: 100000)")
    parser.add_argument("--median-seconds", type=float, default=1100.0, help="of their lengths (default: 1100)")
    parser.add_argument("--tokens-per-second", default="150000", help="assumed for a GPU (default: 150000)")
    parser.add_argument("--network", type=float, default=25.0, help="Gbit/s of its machine (default: 25)")
    parser.add_argument("--viewers", type=float, default=1.0, help="of each stream (default: 1)")
    parser.add_argument("--repetitions", type=int, default=5, help="scales all that is measured (default: 5)")
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: temporary files)")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the tables into this page")
    run(parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> None:
    """The whole program."""
    card = find_card(arguments.model, None)
    question = Question(card, card.resolution, card.window, gpu_memory(arguments.gpu), "bf16")
    streams_each, others = streams_of_a_gpu(arguments, question), cores_used_by_others(1.0)
    note("measuring")
    costs = measure(arguments, card, streams_each)
    note(f"simulating {arguments.sessions} sessions on {arguments.gpus} GPUs")
    result = day(arguments, question, streams_each)
    viewing = Viewing(card.latent_frames_per_second / card.frames_per_chunk, arguments.viewers)
    found = designs(costs, viewing, arguments.network * 1e9 / 8)
    tables: dict[str, Table] = {
        "day": (DAY_HEADERS, day_rows(arguments, streams_each, result)),
        "costs": (COSTS_HEADERS, cost_rows(costs, arguments.gpus)),
        "limits": (LIMITS_HEADERS, limit_rows(found, streams_each, result.peak_streams)),
    }
    for name in ("day", "costs"):
        print(f"{format_table(*tables[name])}\n")
    for design in found:
        of_design = [row[1:] for row in tables["limits"][1] if row[0] == design]
        print(f"{design}\n{format_table(LIMITS_HEADERS[1:], of_design)}\n")
    print("\n".join(advice(found, result.peak_streams)))
    print(f"others: {others:.2f} cores in use when this began")
    if arguments.readme:
        for name, (headers, rows) in tables.items():
            replace_table(arguments.readme, name, markdown(headers, rows))
    write_report(arguments, "scale", facts(arguments, streams_each, costs, result, found) | {"others": others})


def facts(
    arguments: argparse.Namespace,
    streams_each: int,
    costs: UnitCosts,
    result: Simulation,
    found: Mapping[str, list[Resource]],
) -> dict[str, Any]:
    """The same for programs."""
    peak = result.peak_streams
    return {
        "assumed": {name: getattr(arguments, name) for name in ("tokens_per_second", "network", "viewers")},
        "simulated": {**asdict(result), "streams_of_a_gpu": streams_each},
        "measured": asdict(costs),
        "designs": {
            design: {
                "num_services": num_services(resources, peak),
                "resources": [
                    {"name": it.name, "per_stream": it.per_stream, "limit": it.limit, "at_peak": it.load(peak)}
                    for it in resources
                ],
            }
            for design, resources in found.items()
        },
    }


if __name__ == "__main__":
    main()

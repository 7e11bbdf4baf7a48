"""How many videos fit, from integers alone: it needs no weights and no GPU.

--prove allocates the memory and measures it; --trace simulates a day of arrivals; --sustain says how many of the videos
that fit are played while they are made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.card_files import find_card, presets
from pagedvid.capacity.cards import MAX_BRANCHES, Resolution
from pagedvid.capacity.gpus import gpu_memory, gpu_names
from pagedvid.capacity.sizing import CODEC_CHOICES, Question, answers
from pagedvid.capacity.sustain import TokenRate, parse_rate, parse_speed, sustained
from pagedvid.capacity.target import parse_targets, reach, target_question
from pagedvid.cli.capacity_report import Report, sizing_report, target_report
from pagedvid.cli.capacity_sustain import sustain_report
from pagedvid.cli.cores import choose_wait_policy
from pagedvid.cli.options import by_reader, by_rule, path_flag
from pagedvid.cli.terminal import EXIT_FAILED, EXIT_SUCCESS
from pagedvid.codecs.registry import codec_names
from pagedvid.config.rules import number, whole
from pagedvid.config.sections import DEVICE
from pagedvid.errors import ConfigError
from pagedvid.shown import short, shown
from pagedvid.units import parse_bytes

DEFAULT_CODEC = "int2"
DEFAULT_MEMORY = "80GiB"
MAX_GPUS = 10_000

_NEEDS = {
    "scale": ("prove",),
    "device": ("prove", "sustain"),
    "gpus": ("trace",),
    "max_wait": ("trace",),
    "concurrent": ("trace",),
    "tokens_per_second": ("sustain",),
}
_EXCLUDES = (
    *(("prove", "trace"), ("prove", "targets"), ("prove", "plot"), ("prove", "sustain")),
    *(("trace", "targets"), ("trace", "plot"), ("trace", "sustain"), ("sustain", "targets")),
)


def add_parser(subparsers: Any) -> None:
    """Adds `capacity`."""
    parser = subparsers.add_parser("capacity", help="how many videos fit, without weights or GPU", description=__doc__)
    parser.add_argument("--model", metavar="NAME", required=True, help="one of `pagedvid models`, or a YAML card")
    parser.add_argument("--models", metavar="DIR", type=path_flag, help="folder with more model cards")
    parser.add_argument("--resolution", metavar="WxH", help="pixels, such as 832x480 (default: the model's)")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--memory", metavar="SIZE", default=DEFAULT_MEMORY, help=f"memory of the device (default: {DEFAULT_MEMORY})"
    )
    memory.add_argument("--gpu", metavar="NAME", help=f"or a GPU by name: {', '.join(gpu_names())}")
    parser.add_argument(
        "--weights", metavar="FORMAT", default="bf16", help="bf16 (default), fp8, offload, fp8-offload or none"
    )
    parser.add_argument("--reserve", metavar="SIZE", default="0", help="kept free for activations, VAE, text encoder")
    parser.add_argument("--window", metavar="W", help="SINK+RECENT chunks (1+6), frames (18frames) or seconds (4.5s)")
    parser.add_argument("--kv", metavar="NAMES", help=f"some of {', '.join(CODEC_CHOICES)} and the presets")
    parser.add_argument(
        "--branches", metavar="N", type=by_rule(whole(1, MAX_BRANCHES)), help="guidance branches (default: the model's)"
    )
    parser.add_argument(
        "--target", metavar="T", dest="targets", action="append", help="streams=N or seconds=S; both: give it twice"
    )
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table", help="default: table")
    parser.add_argument("--plot", metavar="FILE", type=path_flag, help="draw streams over memory (.png, .svg, .pdf)")
    sustain = parser.add_argument_group("--sustain: how many streams are played while they are made")
    sustain.add_argument(
        "--sustain", metavar="SPEED", type=by_reader(parse_speed), help="frames per second of a viewer, such as 16fps"
    )
    sustain.add_argument(
        "--tokens-per-second",
        metavar="N",
        type=by_reader(parse_rate),
        help="tokens of the model per second, or DENOISE/COMMIT; without it they are measured here (demo model)",
    )
    prove = parser.add_argument_group("--prove: build the pool, fill it and compare with the prediction")
    prove.add_argument("--prove", action="store_true", help="exit code 1 when measured and predicted disagree")
    prove.add_argument("--scale", metavar="F", type=by_rule(number(0.001, 1)), help="use this fraction of the layers")
    prove.add_argument(
        "--device", metavar="NAME", type=by_rule(DEVICE), help="cpu (default), cuda or cuda:N; for --sustain, too"
    )
    trace = parser.add_argument_group("--trace: simulate arrivals at many GPUs")
    trace.add_argument("--trace", metavar="FILE", type=path_flag, help="jsonl; see tools/make_trace.py")
    trace.add_argument("--gpus", metavar="N", type=by_rule(whole(1, MAX_GPUS)), help="number of GPUs (default: 1)")
    trace.add_argument(
        "--max-wait", metavar="S", type=by_rule(number(0, 10**9)), help="seconds that a stream waits before it gives up"
    )
    trace.add_argument(
        "--concurrent", metavar="N", type=by_rule(whole(1, 10**6)), help="most streams of one GPU (default: memory)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the answer and returns the exit code. Raises `PagedvidError` for bad input and when nothing fits."""
    _check_flags(args)
    question = _question(args)
    choices = _choices(args.kv)
    if args.prove:
        return _prove(args, question, choices)
    if args.trace:
        report = _simulate(args, question, choices)
    elif args.sustain is not None:
        report = _sustain(args, question, choices)
    elif args.targets:
        target = parse_targets(args.targets)
        report = target_report(target_question(question, target), target, reach(question, target, choices))
    else:
        report = sizing_report(question, answers(question, choices))
    if args.plot:
        _plot(args, question, choices)
    print(report.render(args.format))
    return EXIT_SUCCESS


def _check_flags(args: argparse.Namespace) -> None:
    """Raises ConfigError for flags that contradict each other or would have no effect."""
    for flag, needed in _NEEDS.items():
        if getattr(args, flag) is not None and not any(getattr(args, other) for other in needed):
            others = " or ".join(f"--{other}" for other in needed)
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} has no effect without {others}; add {others} or drop the flag")
    for first, second in _EXCLUDES:
        if getattr(args, first) and getattr(args, second):
            names = [f"--{name.removesuffix('s')}" for name in (first, second)]
            raise ConfigError(f"{names[0]} and {names[1]} cannot be combined; drop one of them")
    if args.window is not None and any(word.startswith("seconds=") for word in args.targets or ()):
        raise ConfigError("--window and --target seconds=S both set the window; drop one of them")


def _question(args: argparse.Namespace) -> Question:
    card = find_card(args.model, args.models)
    resolution = Resolution.parse(args.resolution) if args.resolution is not None else card.resolution
    memory_bytes = gpu_memory(args.gpu) if args.gpu is not None else parse_bytes(args.memory)
    reserve_bytes = parse_bytes(args.reserve)
    if memory_bytes == 0:
        raise ConfigError(f"--memory is {shown(args.memory)}; allowed is a size above zero, such as 80GiB")
    look_back = card.window if args.window is None else card.look_back(args.window)
    question = Question(card, resolution, look_back, memory_bytes, args.weights, reserve_bytes, args.branches)
    card.tokens_per_frame(resolution)
    return question


def _choices(written: str | None) -> dict[str, StreamCodecs]:
    """The choices of codecs that --kv names; all without --kv. Raises ConfigError."""
    known = {**CODEC_CHOICES, **presets()}
    if written is None:
        return known
    names = [name.strip() for name in written.split(",")]
    return {name: known[name] if name in known else _codecs(name, known) for name in names}


def _codecs(name: str, known: Mapping[str, StreamCodecs]) -> StreamCodecs:
    """A choice without a name of its own, such as int4/int2. Raises ConfigError."""
    try:
        return StreamCodecs(name)
    except ConfigError:
        raise ConfigError(
            f"--kv names {shown(name)}; allowed are {', '.join(known)}, any codec ({codec_names()}) and KEYS/VALUES "
            "such as int4/int2, several separated by commas"
        ) from None


def _one_choice(args: argparse.Namespace, choices: Mapping[str, StreamCodecs], flag: str) -> tuple[str, StreamCodecs]:
    """The single choice of --kv; without --kv int2. Raises ConfigError."""
    if args.kv is None:
        return DEFAULT_CODEC, choices[DEFAULT_CODEC]
    if len(choices) > 1:
        raise ConfigError(f"{flag} takes one choice of codecs; --kv {short(args.kv)} names several")
    ((name, codecs),) = choices.items()
    return name, codecs


def _prove(args: argparse.Namespace, question: Question, choices: Mapping[str, StreamCodecs]) -> int:
    from pagedvid.capacity.prove import prove  # imports PyTorch
    from pagedvid.cli.capacity_runs import proof_report

    name, codecs = _one_choice(args, choices, "--prove")
    proof = prove(
        question,
        name,
        codecs,
        layer_fraction=args.scale or 1.0,
        device=args.device or "cpu",
        progress=partial(_show_progress, "commit"),
    )
    print(proof_report(proof).render(args.format))
    return EXIT_SUCCESS if proof.agrees else EXIT_FAILED


def _sustain(args: argparse.Namespace, question: Question, choices: Mapping[str, StreamCodecs]) -> Report:
    rows = answers(question, choices)
    rate = args.tokens_per_second or _measured_rate(question, args.device or "cpu")
    return sustain_report(question, rows, sustained(question, args.sustain, rate))


def _measured_rate(question: Question, device: str) -> TokenRate:
    choose_wait_policy()
    from pagedvid.capacity.measure_rate import measured_rate  # imports PyTorch

    return measured_rate(question, device, partial(_show_progress, "chunk"))


def _show_progress(what: str, done: int, total: int) -> None:
    """A line that is rewritten in place; only on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{what} {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)


def _simulate(args: argparse.Namespace, question: Question, choices: Mapping[str, StreamCodecs]) -> Report:
    from pagedvid.capacity.simulate import Fleet, simulate  # imports PyTorch
    from pagedvid.capacity.trace import read_trace
    from pagedvid.cli.capacity_runs import simulation_report

    name, codecs = _one_choice(args, choices, "--trace")
    arrivals = read_trace(args.trace, question)
    fleet = Fleet.of(question, codecs, arrivals, args.gpus or 1, args.concurrent, args.max_wait)
    return simulation_report(question, name, fleet, simulate(fleet, arrivals))


def _plot(args: argparse.Namespace, question: Question, choices: Mapping[str, StreamCodecs]) -> None:
    from pagedvid.capacity.plot import draw_streams_over_memory

    question = target_question(question, parse_targets(args.targets)) if args.targets else question
    draw_streams_over_memory(question, choices, args.plot)

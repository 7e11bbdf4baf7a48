"""What `pagedvid capacity --prove` and `--trace` print."""

from __future__ import annotations

from pagedvid.capacity.prove import Proof
from pagedvid.capacity.simulate import Fleet
from pagedvid.capacity.simulation_result import Simulation
from pagedvid.capacity.sizing import Question
from pagedvid.cli.capacity_report import Report, columns, question_facts, question_lines
from pagedvid.units import format_bytes


def proof_report(proof: Proof) -> Report:
    """Predicted and measured numbers, side by side."""
    cells = [
        (
            check.what,
            f"{check.predicted:,}",
            f"{check.measured:,}",
            f"{check.difference:+.3%}" if check.tolerance else f"{check.measured - check.predicted:+,}",
            "ok" if check.agrees else "WRONG",
        )
        for check in proof.checks
    ]
    verdict = "predicted = measured" if proof.agrees else "predicted and measured DISAGREE"
    lines = [
        *question_lines(proof.question),
        (
            f"proof    {proof.name} on {proof.device}, {proof.num_layers} of {proof.question.card.num_layers} layers, "
            f"{proof.num_commits} commits per stream, {proof.seconds:.1f} s"
        ),
        "",
        *columns(("", "predicted", "measured", "difference", ""), cells),
        "",
        f"{verdict} (peak within {proof.tolerance:.1%}, everything else exactly)",
        "Bytes are those of tensors; the process and its allocator take more on top.",
    ]
    if proof.num_layers < proof.question.card.num_layers:
        lines.append(
            f"extrapolated to all {proof.question.card.num_layers} layers: {format_bytes(proof.full_bytes)} of pages; "
            "the workspace hardly changes"
        )
    rows = [
        {
            "what": check.what,
            "predicted": check.predicted,
            "measured": check.measured,
            "tolerance": check.tolerance,
            "agrees": check.agrees,
        }
        for check in proof.checks
    ]
    facts = {
        **question_facts(proof.question),
        "codec": proof.name,
        "device": proof.device,
        "num_layers": proof.num_layers,
        "extrapolated_pool_bytes": proof.full_bytes,
        "agrees": proof.agrees,
    }
    return Report(facts, rows, lines)


def simulation_report(question: Question, name: str, fleet: Fleet, result: Simulation) -> Report:
    """What became of the streams, and how full the pools were over time."""
    waits = result.waits
    lines = [
        *question_lines(question),
        f"fleet    {fleet.num_gpus} GPUs, {name}, {format_bytes(fleet.pool_bytes)} of pages each",
        "",
        f"streams      {result.num_streams}",
        f"admitted     {result.num_admitted}, {result.num_queued} of them after waiting",
        f"rejected     {result.num_too_large} too large for a GPU, {result.num_gave_up} gave up waiting",
        (
            f"waiting      mean {waits.mean:.1f} s, median {waits.median:.1f} s, p99 {waits.p99:.1f} s, "
            f"maximum {waits.most:.1f} s"
        ),
        f"at once      at most {result.peak_streams} streams; longest queue {result.peak_queue}",
        f"pages        {result.mean_pages_ratio:.1%} reserved on average, {result.peak_pages_ratio:.1%} at most",
        "",
        *columns(
            ("from hour", "reserved", "most", "streams", "queued"),
            [
                (
                    f"{period.start_seconds / 3600:.2f}",
                    f"{period.mean_pages_ratio:.1%}",
                    f"{period.peak_pages_ratio:.1%}",
                    f"{period.mean_streams:.1f}",
                    f"{period.mean_queue:.1f}",
                )
                for period in result.periods
            ],
        ),
        "",
        "A stream keeps its pages for its length; the speed of forwards is not simulated.",
    ]
    return Report(_simulation_facts(question, name, fleet, result), [vars(period) for period in result.periods], lines)


def _simulation_facts(question: Question, name: str, fleet: Fleet, result: Simulation) -> dict[str, object]:
    """The same for programs."""
    waits = result.waits
    return {
        **question_facts(question),
        "codec": name,
        "num_gpus": fleet.num_gpus,
        "pool_bytes_per_gpu": fleet.pool_bytes,
        "num_streams": result.num_streams,
        "num_admitted": result.num_admitted,
        "num_queued": result.num_queued,
        "num_rejected_too_large": result.num_too_large,
        "num_rejected_waiting": result.num_gave_up,
        "wait_mean_seconds": waits.mean,
        "wait_median_seconds": waits.median,
        "wait_p99_seconds": waits.p99,
        "wait_most_seconds": waits.most,
        "peak_streams": result.peak_streams,
        "peak_queue": result.peak_queue,
        "mean_pages_ratio": result.mean_pages_ratio,
        "peak_pages_ratio": result.peak_pages_ratio,
    }

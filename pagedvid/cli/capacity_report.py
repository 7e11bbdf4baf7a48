"""What `pagedvid capacity` prints about sizes: a report of facts and rows, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pagedvid.capacity.look_back import SlidingLookBack
from pagedvid.capacity.sizing import Answer, Question
from pagedvid.capacity.target import Target, TargetAnswer
from pagedvid.units import format_bytes

Row = Mapping[str, object]


@dataclass(frozen=True)
class Report:
    """`facts` and `rows` are for programs; `lines` say the same to people."""

    facts: Row
    rows: Sequence[Row]
    lines: Sequence[str] = field(repr=False)

    def render(self, how: str) -> str:
        """`how`: table, json or csv (the rows only)."""
        if how == "json":
            return json.dumps({**self.facts, "rows": list(self.rows)}, indent=2)
        if how == "csv":
            return _csv(self.rows)
        return "\n".join(self.lines)


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().rstrip("\n")


def columns(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table: the first column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    return [
        "  ".join(cell.ljust(widths[i]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in (headers, *rows)
    ]


def question_lines(question: Question) -> list[str]:
    """Model, frame, chunk, window, memory and VAE, one line each."""
    card, size = question.card, question.size
    copies = f" (original: {card.original_copies} copies)" if card.original_copies > 1 else ""
    branches = f", {size.num_branches} branches" if size.num_branches > 1 else ""
    tokens = card.tokens_per_frame(question.resolution)
    rate = card.latent_frames_per_second
    if isinstance(question.look_back, SlidingLookBack):
        sinks, recent = question.look_back.sink_chunks, question.look_back.recent_chunks
        window = f"{sinks} sink + {recent} recent chunks = {size.seconds:.4g} s, and the chunk being committed"
    else:
        frames = question.look_back.num_frames(card.frames_per_chunk)
        window = f"{frames} frames = {size.seconds:.4g} s, stored anew for every chunk"
    host = f" ({format_bytes(question.weights.host)} in host memory)" if question.weights.host else ""
    weights = f"weights {question.weights_format} {format_bytes(question.weights_bytes)}{host}"
    reserve = f", reserve {format_bytes(question.reserve_bytes)}" if question.reserve_bytes else ""
    return [
        (
            f"model    {card.name}: {card.num_layers} layers x {card.num_kv_heads} KV heads x {card.head_dim}"
            f"{copies}{branches}"
        ),
        f"frame    {question.resolution} = {tokens} tokens; {rate:g} latent frames = 1 s of video",
        (
            f"chunk    {size.chunk_tokens} tokens; {card.frames_in_flight} frames = {size.current_tokens} tokens "
            "denoised together"
        ),
        f"window   {window}",
        f"memory   {format_bytes(question.memory_bytes)} less {weights}{reserve}",
        *_vae_lines(question),
    ]


def _vae_lines(question: Question) -> list[str]:
    kept = question.card.vae_stream_bytes(question.resolution)
    return [f"vae      {format_bytes(kept)} of main memory for each video whose frames stream out"] if kept else []


def question_facts(question: Question) -> dict[str, object]:
    """The same for programs."""
    size = question.size
    return {
        "model": question.card.name,
        "resolution": str(question.resolution),
        "tokens_per_frame": question.card.tokens_per_frame(question.resolution),
        "chunk_tokens": size.chunk_tokens,
        "num_branches": size.num_branches,
        "window": str(question.look_back),
        "window_seconds": size.seconds,
        "memory_bytes": question.memory_bytes,
        "weights": question.weights_format,
        "weights_bytes": question.weights_bytes,
        "weights_host_bytes": question.weights.host,
        "vae_stream_bytes": question.card.vae_stream_bytes(question.resolution),
        "reserve_bytes": question.reserve_bytes,
    }


def sizing_report(question: Question, rows: Sequence[Answer]) -> Report:
    """Streams that fit, by codec."""
    headers = ("codec", "bits/value", "chunk", "stream", "vs bf16", "streams", "longest", "padding")
    cells = [
        (
            row.name,
            f"{row.bits_per_value:.2f}",
            format_bytes(row.chunk_bytes),
            format_bytes(row.stream_bytes),
            f"{row.ratio_to_bf16:.2f}x",
            str(row.num_streams),
            _seconds(row.longest_seconds) if row.longest else "-",
            f"{row.padding_waste_ratio:.1%}",
        )
        for row in rows
    ]
    workspace = max(rows, key=lambda row: row.workspace_bytes)
    table_bytes = max(row.table_bytes for row in rows)
    tables = [f"tables   {format_bytes(table_bytes)} for klt codecs, shared by all streams"] if table_bytes else []
    lines = [
        *question_lines(question),
        (
            f"on top   current chunk {format_bytes(workspace.current_bytes)}, scratch "
            f"{format_bytes(workspace.scratch_bytes)}, commit {format_bytes(workspace.commit_bytes)}"
        ),
        *tables,
        "",
        *columns(headers, cells),
        "",
        "stream: its pages at the peak, all branches. longest: the window that a single",
        "stream can have. Not counted: activations, VAE, text encoder (use --reserve).",
    ]
    return Report(question_facts(question), [answer_facts(row) for row in rows], lines)


def answer_facts(row: Answer) -> dict[str, object]:
    """A row for programs."""
    return {
        "codec": row.name,
        "history_codec": _written(row.codecs.history),
        "sink_codec": _written(row.codecs.sink),
        "newest_codec": _written(row.codecs.newest),
        "bits_per_value": row.bits_per_value,
        "chunk_bytes": row.chunk_bytes,
        "stream_pages": row.stream_pages,
        "stream_bytes": row.stream_bytes,
        "ratio_to_bf16": row.ratio_to_bf16,
        "num_streams": row.num_streams,
        "longest_window": None if row.longest is None else str(row.longest),
        "longest_seconds": row.longest_seconds,
        "padding_waste_ratio": row.padding_waste_ratio,
        "pool_pages": row.pool_pages,
        "pool_bytes": row.pool_bytes,
        "current_bytes": row.current_bytes,
        "scratch_bytes": row.scratch_bytes,
        "commit_bytes": row.commit_bytes,
        "table_bytes": row.table_bytes,
    }


def target_report(question: Question, target: Target, found: Sequence[TargetAnswer]) -> Report:
    """Which codecs reach the target with the window, and which window reaches it in each codec."""
    num_streams = target.num_streams or 1
    wanted = f"{num_streams} stream{'s' if num_streams > 1 else ''}, each keeping {question.size.seconds:.4g} s"
    cells = [
        (
            item.answer.name,
            format_bytes(item.answer.stream_bytes),
            str(item.answer.num_streams),
            "yes" if item.reaches else "no",
            str(item.longest or "-"),
            _seconds(item.longest_seconds) if item.longest else "-",
        )
        for item in found
    ]
    reaching = [item for item in found if item.reaches]
    finest = max(reaching, key=lambda item: item.answer.bits_per_value, default=None)
    if finest is not None:
        verdict = f"{finest.answer.name} ({finest.answer.bits_per_value:.2f} bits) is the finest codec that reaches it"
    else:
        best = max(found, key=lambda item: item.longest_seconds)
        verdict = (
            f"no codec reaches it with the window {question.look_back}; {best.answer.name} does with {best.longest} "
            f"({_seconds(best.longest_seconds)})"
        )
    headers = ("codec", "stream", "streams", "reaches", f"longest window for {num_streams}", "seconds")
    facts = {
        **question_facts(question),
        "target_streams": target.num_streams,
        "target_seconds": target.seconds,
        "finest_codec": finest.answer.name if finest else None,
    }
    rows = [
        {
            **answer_facts(item.answer),
            "reaches": item.reaches,
            "target_window": None if item.longest is None else str(item.longest),
            "target_window_seconds": item.longest_seconds,
        }
        for item in found
    ]
    lines = [*question_lines(question), f"target   {wanted}", "", *columns(headers, cells), "", verdict]
    return Report(facts, rows, lines)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _written(codecs: object) -> str | None:
    return None if codecs is None else str(codecs)

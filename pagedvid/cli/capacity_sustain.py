"""What `pagedvid capacity --sustain` prints: of the streams that fit, those that are played while they are made."""

from __future__ import annotations

from collections.abc import Sequence

from pagedvid.capacity.sizing import Answer, Question
from pagedvid.capacity.sustain import Sustained
from pagedvid.cli.capacity_report import Report, answer_facts, columns, question_facts, question_lines
from pagedvid.engine.pace import SHARE_FOR_LIVE
from pagedvid.units import format_bytes


def sustain_report(question: Question, rows: Sequence[Answer], sustained: Sustained) -> Report:
    """Resident and sustained streams, by codec."""
    rate, by_pace = sustained.rate, sustained.num_streams
    speed, share = f"{sustained.frames_per_second:g} fps", f"{sustained.stream_share:.3g}"
    cells = [
        (
            row.name,
            format_bytes(row.stream_bytes),
            str(row.num_streams),
            str(min(row.num_streams, by_pace)),
            "memory" if row.num_streams < by_pace else "compute",
        )
        for row in rows
    ]
    denoise, commit = (f"{number:,.0f}" for number in (rate.denoise_tokens_per_second, rate.commit_tokens_per_second))
    lines = [
        *question_lines(question),
        f"pace     {denoise} tokens/s in denoise steps, {commit} in commit passes",
        f"         {rate.source}",
        f"sustain  a stream at {speed} takes {share} of the device; all may take {SHARE_FOR_LIVE:g}",
        "",
        *columns(("codec", "stream", "resident", "sustained", "limited by"), cells),
        "",
        _verdict(sustained),
        "resident: streams that fit in memory. sustained: those that also play at this",
        "speed while they are made. Batching adds little to the pace; a longer window,",
        "a larger frame and another codec change it.",
    ]
    facts = {
        **question_facts(question),
        "sustain_frames_per_second": sustained.frames_per_second,
        "denoise_tokens_per_second": rate.denoise_tokens_per_second,
        "commit_tokens_per_second": rate.commit_tokens_per_second,
        "pace_source": rate.source,
        "stream_share": sustained.stream_share,
        "share_for_live": SHARE_FOR_LIVE,
        "num_streams_by_pace": by_pace,
    }
    counts = ({"num_sustained_streams": min(row.num_streams, by_pace)} for row in rows)
    return Report(facts, [{**answer_facts(row), **count} for row, count in zip(rows, counts, strict=True)], lines)


def _verdict(sustained: Sustained) -> str:
    if sustained.num_streams == 0:
        return f"the device keeps up with {sustained.fastest:.3g} fps at most, with a single stream"
    streams = "1 stream" if sustained.num_streams == 1 else f"{sustained.num_streams} streams"
    return f"the device keeps up with {streams} at {sustained.frames_per_second:g} fps, whatever the memory holds"

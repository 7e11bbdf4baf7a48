"""Looking at an output folder from outside."""

from __future__ import annotations

import json
from pathlib import Path

from pagedvid.output.mp4 import read_frames


def manifest_lines(folder: Path) -> list[dict]:
    """The entries of a folder's manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def names(folder: Path) -> set[str]:
    """Names of all files, hidden ones too."""
    return {path.name for path in folder.iterdir()}


def assert_whole_videos(folder: Path, num_frames: int) -> list[str]:
    """Every mp4 decodes to all its frames; returns their ids."""
    videos = sorted(folder.glob("*.mp4"))
    for video in videos:
        assert len(read_frames(video)) == num_frames, video
    return [video.stem for video in videos]

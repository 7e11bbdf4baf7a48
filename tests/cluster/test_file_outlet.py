"""A worker's videos become files at any place that fsspec can write to, and get their names in one place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pagedvid.cluster.file_outlet import FileEvent, FileOutlet, ProgressEvent, VideoFormat
from pagedvid.cluster.library import files_library
from pagedvid.cluster.remote_files import RemoteFiles
from pagedvid.cluster.url_folder import UrlFolder
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output.folder import OutputFolder
from pagedvid.output.mp4 import read_frames
from pagedvid.service.events import ChunkEvent, FailureEvent, StateEvent

FORMAT = VideoFormat(8.0, 1, holds_latents=False)
REQUEST = VideoRequest("a", "a red circle", 8, seed=1)
JOB = {"cache.codec": "int2"}, {"weights": "0123"}
FRAMES = np.full((4, 16, 16, 3), 200, np.uint8)


def chunk(index: int, is_last: bool) -> ChunkEvent:
    return ChunkEvent("a", index, 4 * index, FRAMES, is_last, 100, 1000)


def told(url: str, *events) -> list:
    """What an outlet sends on for these events."""
    sent: list = []
    outlet = FileOutlet(sent.append, url, FORMAT)
    for event in events:
        outlet.hear(event)
    outlet.close()
    return sent


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "file":
        yield f"file://{tmp_path}/out"
    else:
        yield "memory://out"
        files_library().filesystem("memory").rm("/out", recursive=True)


def read_video(files: RemoteFiles, name: str, tmp_path: Path) -> list:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(files.read(name))
    return read_frames(copy)


def test_a_video_is_uploaded_accepted_and_done(url, tmp_path):
    with UrlFolder(url, *JOB) as folder:
        *progress, file = told(folder.url, chunk(0, False), chunk(1, True))
        assert progress == [ProgressEvent("a", 4)] * 2
        assert isinstance(file, FileEvent) and (file.num_frames, file.stored_bytes, file.bf16_bytes) == (8, 100, 1000)
        assert RemoteFiles(url).names() == [file.name]  # no final name before it is accepted
        folder.accept(REQUEST, file.name, {"frames_per_second": 8.0})
    files = RemoteFiles(url)
    assert files.names() == ["a.json", "a.mp4", "manifest.jsonl"]
    assert len(read_video(files, "a.mp4", tmp_path)) == 8
    assert json.loads(files.read("a.json"))["bytes"] == files.num_bytes("a.mp4") == file.num_bytes
    with pytest.raises(ConfigError, match="is not empty"):
        UrlFolder(url, *JOB)
    with UrlFolder(url, *JOB, resume=True) as folder:
        assert folder.is_done(REQUEST)
        assert not folder.is_done(VideoRequest("b", "a red circle", 8))


def test_another_job_is_refused_and_named(url):
    with UrlFolder(url, *JOB) as folder:
        folder.record_failed(REQUEST, "PromptError", "no word is known")
    with (
        UrlFolder(url, {"cache.codec": "int4"}, {"weights": "4567"}, resume=True) as folder,
        pytest.raises(
            ConfigError, match=r"of another job .cache.codec: int2 -> int4; fingerprint of weights: 0123 -> 4567"
        ),
    ):
        folder.refuse_another_job()


def test_a_local_folder_accepts_what_a_worker_uploaded(tmp_path):
    with OutputFolder(tmp_path / "out", *JOB) as folder:
        *_, file = told(folder.url, chunk(0, False), chunk(1, True))
        folder.accept(REQUEST, file.name, {})
        (tmp_path / "out" / ".pagedvid-b.mp4.1234.tmp").write_bytes(b"of a worker that was lost")
        folder.discard_unfinished()
        assert folder.is_done(REQUEST)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.json", "a.mp4", "manifest.jsonl"]


def test_a_failure_comes_after_the_chunks_and_leaves_no_file(tmp_path):
    failure = FailureEvent("a", "NonFiniteError", "NaN among the keys")
    state = StateEvent("b", "running")
    assert told(str(tmp_path), state, chunk(0, False), failure) == [state, ProgressEvent("a", 4), failure]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_uploaded_fails_its_video(tmp_path):
    events = told(str(tmp_path / "missing"), chunk(0, True), chunk(1, True))
    assert events[0] == ProgressEvent("a", 4)
    assert (events[1].id, events[1].kind) == ("a", "FileNotFoundError")
    assert len(events) == 2  # later chunks of that video are dropped


def test_an_unknown_protocol_is_an_error_of_the_settings():
    with pytest.raises(ConfigError, match="cannot be written to: Protocol not known"):
        RemoteFiles("nowhere://bucket")


def test_the_last_lines_of_a_killed_driver_cost_their_videos_only(url):
    """The manifest is not written for every video; without its line a video is made again."""
    folder = UrlFolder(url, *JOB)
    *_, file = told(folder.url, chunk(0, False), chunk(1, True))
    folder.accept(REQUEST, file.name, {})
    assert "a.mp4" in RemoteFiles(url).names()
    with UrlFolder(url, *JOB, resume=True) as again:
        assert not again.is_done(REQUEST)

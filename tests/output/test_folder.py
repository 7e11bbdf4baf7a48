"""The output folder: what counts as done, and what is kept when something cannot be written."""

from __future__ import annotations

import errno
import json
import logging

import numpy as np
import pytest

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.output import folder as folder_module
from pagedvid.output.folder import OutputFolder
from pagedvid.output.manifest import Manifest
from tests.cli.folders import manifest_lines, names

REQUEST = VideoRequest("a", "a red circle", 4, seed=1)
SETTINGS = {"cache.codec": "int2"}


def make(folder, request=REQUEST, value=0.0):
    writer = folder.open_video(request, 8.0, 1)
    shape = (4, 3, 4, 4) if folder.holds_latents else (4, 4, 4, 3)
    writer.add(np.full(shape, value, np.float32 if folder.holds_latents else np.uint8))
    folder.record_done(request, writer, {"cache_peak_bytes": 5})


@pytest.fixture(params=[True, False], ids=["latents", "frames"])
def opened(request, tmp_path):
    """opened(resume=True) -> the folder tmp_path/out"""
    return lambda **how: OutputFolder(tmp_path / "out", SETTINGS, holds_latents=request.param, **how)


@pytest.fixture
def video(opened):
    with opened() as folder:
        make(folder)
    return folder.video_path("a")


class TestDone:
    def test_a_whole_file_with_its_line_is(self, opened, video):
        with opened(resume=True) as folder:
            assert folder.is_done(REQUEST)

    @pytest.mark.parametrize("cut", [1, 10, None])
    def test_a_torn_or_empty_file_is_not(self, opened, video, cut, caplog):
        content = video.read_bytes()
        video.write_bytes(content[:-cut] if cut else b"")
        size = video.stat().st_size
        with caplog.at_level(logging.WARNING), opened(resume=True) as folder:
            assert not folder.is_done(REQUEST)
        assert caplog.messages == [
            f"{video.name} is incomplete, it has {size} of {len(content)} bytes: it is made again"
        ]

    def test_a_folder_or_nothing_in_its_place_is_not(self, opened, video):
        video.unlink()
        with opened(resume=True) as folder:
            assert not folder.is_done(REQUEST)
        video.mkdir()
        with opened(resume=True) as folder:
            assert not folder.is_done(REQUEST)

    def test_lines_of_earlier_versions_do_not_know_the_size(self, opened, video):
        manifest = video.parent / "manifest.jsonl"
        (line,) = manifest_lines(video.parent)
        del line["details"]["bytes"]
        manifest.write_text(json.dumps(line) + "\n")
        with opened(resume=True) as folder:
            assert folder.is_done(REQUEST)
            video.write_bytes(b"")
            assert not folder.is_done(REQUEST)


class TestRecording:
    @pytest.mark.parametrize("what", ["json", "manifest"])
    def test_a_whole_video_stays_when_its_record_cannot_be_written(self, opened, monkeypatch, what):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        with opened() as folder:
            monkeypatch.setattr(*(folder_module, "replacing") if what == "json" else (Manifest, "append"), full)
            with pytest.raises(OSError, match=r"a\.\w+ is complete, but .*: No space left on device; --resume makes"):
                make(folder)
            assert folder.video_path("a").stat().st_size > 0
            assert not folder.is_done(REQUEST)
        assert not [name for name in names(folder.path) if name.endswith(".tmp")]

    def test_any_prompt_is_kept(self, opened):
        request = VideoRequest("a", "half \ud83d and \x00 and " + "x" * 10**6, 4)
        with opened() as folder:
            make(folder, request)
            assert folder.is_done(request)
        with opened(resume=True) as folder:
            assert folder.is_done(request)
        assert json.loads((folder.path / "a.json").read_text(encoding="utf-8"))["prompt"] == request.prompt

    def test_a_folder_that_was_made_anew_is_noticed_before_work_is_lost(self, opened):
        with opened() as folder:
            make(folder)
            for path in folder.path.iterdir():
                path.unlink()
            folder.path.rmdir()
            folder.path.mkdir()
            with pytest.raises(OSError, match="the manifest was removed, replaced or cut"):
                folder.open_video(REQUEST, 8.0, 1)
        assert names(folder.path) == set()


class TestOverwriting:
    def test_the_old_entries_stay_until_there_is_a_new_video(self, opened, video):
        before = {path.name: path.read_bytes() for path in video.parent.iterdir()}
        with opened(overwrite=True) as folder:
            assert not folder.is_done(REQUEST)
        assert {path.name: path.read_bytes() for path in video.parent.iterdir()} == before

    def test_the_old_entries_are_gone_before_a_file_is_replaced(self, opened, video):
        """Otherwise a kill right afterwards would leave a new video with the manifest line of the old one."""
        with opened(overwrite=True) as folder:
            writer = folder.open_video(REQUEST, 8.0, 1)
            assert (folder.path / "manifest.jsonl").read_bytes() == b""
            writer.discard()

    def test_a_stale_file_that_cannot_be_removed_loses_nothing_and_keeps_no_lock(self, opened, video):
        (video.parent / ".pagedvid-a.mp4.tmp").mkdir()
        manifest = (video.parent / "manifest.jsonl").read_bytes()
        with pytest.raises(ConfigError, match="cannot write to"):
            opened(overwrite=True)
        assert (video.parent / "manifest.jsonl").read_bytes() == manifest
        (video.parent / ".pagedvid-a.mp4.tmp").rmdir()
        with opened(resume=True) as folder:
            assert folder.is_done(REQUEST)

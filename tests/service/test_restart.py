"""What a service that starts finds on disk: everything accepted goes on with the same frames, nothing is left over."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pagedvid.service.errors import Conflict, NotFound, StorageError
from pagedvid.service.forks import Forks
from pagedvid.service.records import NewFork, SessionError
from pagedvid.service.session_files import SessionFiles
from tests.service.fake_engine import frames_of
from tests.service.listener import wait_until
from tests.service.services import LIMITS, Service, file_of, new


@pytest.fixture
def begin(tmp_path) -> Iterator[Callable[..., Service]]:
    """begin(name, ...) -> a service in a folder of that name; it is closed at the end of the test."""
    services: list[Service] = []

    def start(name: str = "data", **options) -> Service:
        services.append(Service(tmp_path / name, **options))
        return services[-1]

    yield start
    for service in services:
        service.close()


def killed(service: Service, name: str = "killed") -> Path:
    """A copy of a resting service's folder: what it would leave on disk if it were killed now."""
    service.settle()
    return Path(shutil.copytree(service.folder, service.folder.with_name(name)))


def test_a_graceful_stop_checkpoints_and_the_next_start_goes_on(begin):
    service = begin(steps=8)
    ids = [service.sessions.create(new(prompt, 40)).id for prompt in "abc"]
    service.wait_for_steps(8)
    paused = service.sessions.pause(ids[1])
    service.close()
    assert "checkpoint-1.safetensors" in service.names(ids[0])
    again = begin()
    for id, prompt in ((ids[0], "a"), (ids[2], "c")):
        again.wait_for(id)
        assert again.content(id) == file_of(frames_of(3, [prompt] * 10))
    assert again.engines[-1].num_steps < 80, "chunks that were made are not made again"
    assert again.sessions.get(ids[1]) == paused
    again.sessions.resume(ids[1])
    again.wait_for(ids[1])
    assert again.content(ids[1]) == file_of(frames_of(3, ["b"] * 10))


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 5, 11, 12, 13])
def test_after_a_kill(begin, steps, is_live):
    service = begin(limits=replace(LIMITS, checkpoint_chunks=2), steps=steps)
    speed = 1000 if is_live else None
    id = service.sessions.create(new("a", 18, live_frames_per_second=speed)).id
    service.wait_for_steps(steps)
    again = begin(killed(service).name)
    again.wait_for(id)
    assert again.content(id) == file_of(frames_of(3, ["a"] * 5, 18))
    if steps >= 5:  # there was a checkpoint after two chunks
        assert again.engines[-1].num_steps <= 10


@pytest.mark.parametrize("more", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_prompt_that_was_accepted_counts_from_the_same_chunk_on(begin, steps, more):
    service = begin(steps=steps)
    id = service.sessions.create(new("a", 20)).id
    service.wait_for_steps(steps)
    service.sessions.prompt(id, "b")
    service.let(more)
    service.wait_for_steps(steps + more)
    again = begin(killed(service).name)
    again.wait_for(id)
    num_before = -(-steps // 3)
    assert again.content(id) == file_of(frames_of(3, ["a"] * num_before + ["b"] * (5 - num_before)))


def test_an_extension_that_was_accepted(begin):
    service = begin(steps=4)
    running, complete = (service.sessions.create(new(prompt, frames)).id for prompt, frames in (("a", 12), ("b", 4)))
    service.let(20)
    service.wait_for(complete)
    service.wait_for(running)
    service.steps_left = 0
    for id in (running, complete):
        service.sessions.extend(id, 20)
    again = begin(killed(service).name)
    for id, prompt in ((running, "a"), (complete, "b")):
        again.wait_for(id)
        assert again.content(id) == file_of(frames_of(3, [prompt] * 5))


@pytest.mark.parametrize("more", [0, 1, 2, 5])
def test_forks_that_were_accepted(begin, more):
    service = begin(steps=4)
    id = service.sessions.create(new("a", 20)).id
    service.wait_for_steps(4)
    (fork,) = service.sessions.fork(id, [NewFork("b")])
    service.let(more)
    service.wait_for_steps(4 + more)
    again = begin(killed(service).name)
    for one in (id, fork.id):
        again.wait_for(one)
    assert again.content(id) == file_of(frames_of(3, ["a"] * 5))
    shared = 1 if more == 0 else 2  # if it had not begun, it begins when its source has its frames again
    assert again.content(fork.id) == file_of(frames_of(3, ["a"] * shared, then=[(3, "b")] * (5 - shared)))


def test_a_source_is_never_ahead_of_a_fork_that_is_not_secured(begin, monkeypatch):
    """Otherwise the fork could only begin behind its own end after a crash."""
    service = begin(steps=4)
    id = service.sessions.create(new("a", 16)).id
    service.wait_for_steps(4)
    with monkeypatch.context() as patch:
        patch.setattr(Forks, "secure", lambda self, id: None)  # the housekeeper does not come to it
        (fork,) = service.sessions.fork(id, [NewFork("b", num_frames=12)])
        service.let()
        wait_until(lambda: {video.state for video in service.sessions.stats().videos} == {"finished"})
        folder = killed(service).name
    again = begin(folder)
    for one in (id, fork.id):
        again.wait_for(one)
    assert again.content(id) == file_of(frames_of(3, ["a"] * 4))
    assert again.content(fork.id) == file_of(frames_of(3, ["a"] * 2, then=[(3, "b")]))


def test_a_fork_can_be_deleted_while_its_source_makes_its_frames_again(begin):
    """The worker asks the source for the fork only after that."""
    service = begin(steps=4)
    id = service.sessions.create(new("a", 20)).id
    service.wait_for_steps(4)
    (fork,) = service.sessions.fork(id, [NewFork("b")])
    again = begin(killed(service).name, steps=0)
    again.sessions.delete(fork.id)
    again.let()
    again.wait_for(id)
    again.sessions.delete(id)
    again.settle()
    assert again.engines[-1].videos() == ()


def test_a_fork_goes_on_without_its_source(begin):
    service = begin(steps=6)
    id = service.sessions.create(new("a", 20)).id
    service.wait_for_steps(6)
    (fork,) = service.sessions.fork(id, [NewFork("b")])
    wait_until(lambda: service.sessions.get(fork.id).chunks_done == 2)
    service.sessions.delete(id)
    again = begin(killed(service).name)
    again.wait_for(fork.id)
    assert again.content(fork.id) == file_of(frames_of(3, ["a"] * 2, then=[(3, "b")] * 3))


class TestLeftovers:
    def test_are_removed_and_finished_videos_are_not_touched(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        video = service.sessions.recording(id).path
        whole = service.sessions.whole_file(id)
        content, time = video.read_bytes(), video.stat().st_mtime_ns
        service.close()
        with video.open("ab") as file:
            file.write(b"half a fragment")
        os.utime(video, ns=(time, time))
        (video.parent / ".pagedvid-checkpoint-2.safetensors.tmp").write_bytes(b"x")
        (video.parent / "checkpoint-7.safetensors").write_bytes(b"x")
        (service.folder / "sessions" / "video_of_nobody").mkdir()
        (service.folder / "sessions" / "video_of_nobody" / "video.mp4").write_bytes(b"x")
        with sqlite3.connect(service.folder / "pagedvid.sqlite") as database:
            database.execute(
                "INSERT INTO sessions (id, is_accepted, kind, state, prompt, later_prompts, num_frames, seed, "
                "priority, inputs, created_at, shares_history) "
                "VALUES ('video_half', 0, 'video', 'queued', 'x', '[]', 8, 0, 0, '{}', 0, 0)"
            )
        database.close()
        again = begin()
        assert again.content(id) == video.read_bytes() == content
        assert again.names(id) == {"video.mp4", "checkpoint-1.safetensors"} and not whole.exists()
        assert {path.name for path in (service.folder / "sessions").iterdir()} == {id}
        with pytest.raises(NotFound):
            again.sessions.get("video_half")

    def test_half_a_chunk_is_cut_off_and_made_again(self, begin):
        service = begin(steps=5)
        id = service.sessions.create(new("a", 20)).id
        service.wait_for_steps(5)
        folder = killed(service)
        with (folder / "sessions" / id / "video.mp4").open("ab") as file:
            file.write(b"half a fragment")
        again = begin(folder.name, steps=0)
        assert again.sessions.recording(id).path.stat().st_size == again.sessions.recording(id).end
        again.let()
        again.wait_for(id)
        assert again.content(id) == file_of(frames_of(3, ["a"] * 5))

    def test_a_video_that_lost_bytes_begins_anew_or_has_failed(self, begin):
        service = begin(steps=20)
        done, running = (service.sessions.create(new(prompt, frames)).id for prompt, frames in (("a", 8), ("b", 100)))
        service.wait_for(done)
        service.settle()
        folder = killed(service)
        for id in (done, running):
            os.truncate(folder / "sessions" / id / "video.mp4", 100)
        again = begin(folder.name)
        assert again.sessions.get(done).error == SessionError("StorageError", "only 100 bytes of the video are left")
        again.wait_for(running)
        assert again.content(running) == file_of(frames_of(3, ["b"] * 25))


class TestOtherSettings:
    def test_videos_under_way_begin_anew_and_finished_ones_stay(self, begin):
        service = begin(steps=12, settings="int2")
        done, running = (service.sessions.create(new(prompt, frames)).id for prompt, frames in (("a", 8), ("b", 40)))
        service.wait_for(done)
        service.close()
        again = begin(settings="int4", steps=0)
        assert again.sessions.get(running).chunks_done == 0 and again.sessions.get(done).chunks_done == 2
        again.let()
        again.wait_for(running)
        assert again.content(running) == file_of(frames_of(3, ["b"] * 10))

    def test_a_video_that_was_given_prompts_has_failed(self, begin):
        """It would be another video with the newest prompt alone."""
        service = begin(steps=12, settings="int2")
        id = service.sessions.create(new("a", 40)).id
        service.wait_for_steps(12)
        service.sessions.prompt(id, "b")
        service.close()
        again = begin(settings="int4")
        failed = again.sessions.get(id)
        assert failed.state == "failed" and failed.error.code == "StateError"
        assert "have changed, and it cannot begin anew" in failed.error.message

    def test_a_refused_checkpoint_means_the_beginning_if_that_gives_the_same_video(self, begin):
        service = begin(steps=12)
        plain, prompted = (service.sessions.create(new("a", 40)).id for _ in range(2))
        service.wait_for_steps(12)
        service.sessions.prompt(prompted, "b")
        service.close()
        for id in (plain, prompted):
            for path in (service.folder / "sessions" / id).glob("checkpoint*"):
                path.write_bytes(b"of another version")
        again = begin()
        again.wait_for(plain)
        assert again.content(plain) == file_of(frames_of(3, ["a"] * 10))
        assert again.wait_for(prompted, "failed").error.code == "ConfigError"

    def test_a_store_of_another_version_is_refused(self, begin):
        service = begin()
        service.close()
        with sqlite3.connect(service.folder / "pagedvid.sqlite") as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        with pytest.raises(StorageError, match="tables of version 99, this pagedvid uses version 3"):
            begin()


class TestFullDisk:
    @pytest.fixture
    def full_for(self, monkeypatch) -> set[str]:
        """Ids of the sessions whose files cannot grow."""
        ids: set[str] = set()
        append = SessionFiles.append

        def limited(self, id, start, content) -> None:
            if id in ids and start > 0:
                raise OSError(28, "No space left on device")
            append(self, id, start, content)

        monkeypatch.setattr(SessionFiles, "append", limited)
        return ids

    def test_ends_the_session_that_meets_it_and_no_other(self, begin, full_for):
        service = begin(steps=0)
        bad, good = (service.sessions.create(new(prompt, 20)).id for prompt in "ab")
        full_for.add(bad)
        service.let()
        failed = service.wait_for(bad, "failed")
        assert failed.error.code == "StorageError" and "No space left on device" in failed.error.message
        assert service.content(bad) == file_of(frames_of(3, ["a"])), "what was recorded before stays"
        service.wait_for(good)
        assert service.content(good) == file_of(frames_of(3, ["b"] * 5))
        wait_until(lambda: not service.sessions.stats().videos)

    def test_of_the_store_is_remembered_until_it_can_be_written(self, begin, monkeypatch):
        service = begin()
        store = service.sessions._parts.store
        written = store.save_failures

        def full() -> None:
            raise StorageError("database or disk is full")

        monkeypatch.setattr(store, "save_failures", full)
        id = service.sessions.create(new("a fails@1", 20)).id
        service.wait_for(id, "failed")
        assert store._database.read("SELECT state FROM sessions")[0]["state"] == "in_progress"
        monkeypatch.setattr(store, "save_failures", written)
        wait_until(lambda: store._database.read("SELECT state FROM sessions")[0]["state"] == "failed")

    def test_a_session_is_completed_as_soon_as_that_can_be_written(self, begin, monkeypatch):
        service = begin()
        store, num_tries = service.sessions._parts.store, 0
        written = store.courses.set_checkpoint

        def full(id, checkpoint) -> None:
            nonlocal num_tries
            num_tries += 1
            if num_tries < 3:
                raise StorageError("database or disk is full")
            written(id, checkpoint)

        monkeypatch.setattr(store.courses, "set_checkpoint", full)
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        assert num_tries == 3 and service.sessions.extend(id, 20).state == "in_progress"

    def test_a_checkpoint_that_cannot_be_written_costs_the_continuation_only(self, begin, monkeypatch):
        service = begin()
        monkeypatch.setattr(SessionFiles, "new_checkpoint_name", lambda self, id: "no/such/folder")
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(3, ["a"] * 2))
        with pytest.raises(Conflict, match="its last checkpoint could not be written"):
            service.sessions.extend(id, 20)


@pytest.mark.parametrize("live_frames_per_second", [None, 1000])
def test_checkpoints_come_every_few_chunks(begin, live_frames_per_second):
    service = begin(limits=replace(LIMITS, checkpoint_chunks=3), steps=0)
    id = service.sessions.create(new("a", 40, live_frames_per_second=live_frames_per_second)).id
    for chunk in range(1, 10):
        service.let(3)
        service.wait_for_chunks(id, chunk)
        wait_until(lambda chunk=chunk: ("checkpoint-1.safetensors" in service.names(id)) == (3 <= chunk < 6))

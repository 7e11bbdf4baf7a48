"""The life of sessions, over a real worker with a fake engine. Files are compared byte by byte."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import av
import pytest

from pagedvid.errors import CapacityError, ConfigError, PromptError
from pagedvid.service.courses import Courses
from pagedvid.service.errors import Busy, Closing, Conflict, NotFound, StorageError
from pagedvid.service.forks import Forks
from pagedvid.service.parts import Parts
from pagedvid.service.records import NewFork, SessionError
from pagedvid.service.session_events import ChunkRecorded, SessionFailed, SessionState
from pagedvid.service.store import Store
from pagedvid.service.stored_courses import StoredCheckpoint
from tests.service.fake_engine import frames_of
from tests.service.listener import wait_until
from tests.service.services import LIMITS, Service, file_of, new


@pytest.fixture
def begin(tmp_path) -> Iterator[Callable[..., Service]]:
    """begin(...) -> a service in one folder; it is closed at the end of the test."""
    services: list[Service] = []

    def start(**options) -> Service:
        services.append(Service(tmp_path / "data", **options))
        return services[-1]

    yield start
    for service in services:
        service.close()


class TestOneVideo:
    def test_is_made_and_recorded(self, begin):
        service = begin(steps=0)
        made = service.sessions.create(new("a", 10, seed=3))
        assert (made.state, made.frames_done, made.num_chunks, made.width) == ("queued", 0, 3, None)
        assert made.id.startswith("video_") and len(made.id) > 32
        service.let()
        done = service.wait_for(made.id)
        assert (done.frames_done, done.chunks_done, done.progress, done.width, done.height) == (10, 3, 1.0, 2, 2)
        assert (done.stored_bytes, done.bf16_bytes) == (10, 70)
        assert done.completed_at >= done.created_at and done.error is None
        assert service.content(made.id) == file_of(frames_of(3, ["a"] * 3, 10))

    def test_its_events_come_in_order(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 10)).id
        service.wait_for(id)
        wait_until(lambda: SessionState(id, "completed") in service.events)
        assert service.events[0] == SessionState(id, "in_progress")
        chunks = [event for event in service.events if isinstance(event, ChunkRecorded)]
        assert chunks == [ChunkRecorded(id, 0, 0, 4, 4), ChunkRecorded(id, 1, 4, 4, 8), ChunkRecorded(id, 2, 8, 2, 10)]
        assert service.events[-1] == SessionState(id, "completed")

    def test_can_be_read_while_it_grows(self, begin):
        service = begin(steps=2)
        id = service.sessions.create(new("a", 10)).id
        service.wait_for_chunks(id, 1)
        recording = service.sessions.recording(id)
        assert [(chunk.index, chunk.first_frame, chunk.num_frames) for chunk in recording.chunks] == [(0, 0, 4)]
        assert service.content(id) == file_of(frames_of(3, ["a"]))
        assert service.sessions.frames(id, 0).shape == (4, 2, 2, 3)
        with pytest.raises(NotFound, match="has no chunk 1 yet"):
            service.sessions.frames(id, 1)
        with pytest.raises(Conflict, match="whole file exists when it is completed"):
            service.sessions.whole_file(id)
        service.let()
        service.wait_for(id)
        later = service.sessions.recording(id, 1)
        assert [chunk.index for chunk in later.chunks] == [1, 2] and later.chunks[0].start == recording.end
        with av.open(str(service.sessions.whole_file(id))) as container:
            assert container.streams.video[0].frames == 10
        assert service.sessions.whole_file(id) == service.sessions.whole_file(id)

    def test_frees_its_pages_when_it_is_complete(self, begin):
        service = begin()
        id = service.sessions.create(new()).id
        service.wait_for(id)
        wait_until(lambda: not service.sessions.stats().videos)
        assert service.names(id) == {"video.mp4", "checkpoint-1.safetensors"}

    def test_that_fails_keeps_what_it_has(self, begin):
        service = begin()
        id = service.sessions.create(new("a fails@2", 20)).id
        failed = service.wait_for(id, "failed")
        assert failed.error == SessionError("FloatingPointError", "broke")
        assert failed.frames_done == 8 and service.content(id) == file_of(frames_of(3, ["a fails@2"] * 2))
        wait_until(lambda: SessionFailed(id, failed.error) in service.events)
        with pytest.raises(Conflict, match="failed"):
            service.sessions.extend(id, 40)


class TestRefusals:
    @pytest.mark.parametrize(
        ("asked", "error"),
        [
            (new("unknown"), PromptError),
            (new(num_frames=2000), CapacityError),
            (new(num_frames=0), ConfigError),
            (new(num_frames=2.5), ConfigError),
            (new(seed=2**70), ConfigError),
            (new(prompt="\ud800"), PromptError),
            (new(prompt=7), ConfigError),
            (new(kind="film"), ConfigError),
            (new(inputs={"image": object()}), ConfigError),
            (new(live_frames_per_second=-1), ConfigError),
        ],
    )
    def test_leave_nothing(self, begin, asked, error):
        service = begin()
        with pytest.raises(error):
            service.sessions.create(asked)
        assert service.sessions.list().records == () and list((service.folder / "sessions").iterdir()) == []
        wait_until(lambda: not service.sessions.stats().videos)

    def test_unknown_ids(self, begin):
        sessions = begin().sessions
        for verb in (
            sessions.get,
            sessions.delete,
            sessions.pause,
            sessions.resume,
            sessions.recording,
            sessions.client_came,
            sessions.credit_seconds,
            lambda id: sessions.prompt(id, "b"),
            lambda id: sessions.fork(id, [NewFork()]),
            lambda id: sessions.extend(id, 99),
            lambda id: sessions.played(id, 1),
            lambda id: sessions.list(after=id),
        ):
            with pytest.raises(NotFound, match="there is no session 'video_x'"):
                verb("video_x")
        sessions.client_left("video_x")

    def test_a_full_queue_says_so_with_numbers(self, begin):
        service = begin(limits=replace(LIMITS, max_queued=2), steps=0)
        for _ in range(2):
            service.sessions.create(new())
        with pytest.raises(Busy, match="2 of at most 2 sessions are queued") as caught:
            service.sessions.create(new())
        assert caught.value.numbers == {"queued": 2, "max_queued": 2} and caught.value.retry_after_seconds >= 1
        service.let()
        wait_until(lambda: all(it.state == "completed" for it in service.sessions.list().records))
        service.sessions.create(new())

    def test_live_sessions_are_counted_apart(self, begin):
        service = begin(limits=replace(LIMITS, max_live=1), steps=0)
        service.sessions.create(new(live_frames_per_second=16))
        with pytest.raises(Busy, match="1 of at most 1 sessions are live"):
            service.sessions.create(new(live_frames_per_second=16))
        service.sessions.create(new())

    def test_many_at_once_never_exceed_the_limit(self, begin):
        service = begin(limits=replace(LIMITS, max_queued=5), steps=0)
        outcomes = []

        def ask() -> None:
            try:
                service.sessions.create(new())
                outcomes.append(True)
            except Busy:
                outcomes.append(False)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(service.sessions.list().records) == sum(outcomes) == 5

    def test_nothing_is_accepted_while_it_closes(self, begin):
        service = begin()
        service.close()
        with pytest.raises(Closing, match="shutting down"):
            service.sessions.create(new())

    def test_one_process_at_a_time(self, begin):
        begin()
        with pytest.raises(StorageError, match="another pagedvid works in"):
            begin()


class TestVerbs:
    def test_pause_and_resume(self, begin):
        service = begin(steps=1)
        id = service.sessions.create(new("a", 20)).id
        service.wait_for_steps(1)
        assert service.sessions.pause(id).pause_reason == "user"
        service.let()
        wait_until(lambda: any(video.state == "paused" for video in service.sessions.stats().videos))
        service.settle()
        assert service.sessions.get(id).state == "paused" and service.sessions.get(id).chunks_done == 1
        assert service.sessions.resume(id).state == "in_progress"
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(3, ["a"] * 5))
        for verb in (service.sessions.pause, service.sessions.resume, lambda id: service.sessions.prompt(id, "b")):
            with pytest.raises(Conflict, match="completed"):
                verb(id)

    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
    def test_a_prompt_counts_from_the_next_chunk_on(self, begin, steps):
        service = begin(steps=steps)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(steps)
        assert service.sessions.prompt(id, "b").prompt == "b"
        service.let()
        service.wait_for(id)
        num_before = -(-steps // 3)
        assert service.content(id) == file_of(frames_of(3, ["a"] * num_before + ["b"] * (4 - num_before)))

    @pytest.mark.parametrize("is_late", [False, True])
    @pytest.mark.parametrize("prompts", [["refused"], ["b", "refused"], ["refused", "b"], ["b", "refused", "c"]])
    def test_a_prompt_that_is_refused_at_the_boundary_has_never_been(self, begin, monkeypatch, prompts, is_late):
        service = begin(steps=1)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(1)
        for prompt in prompts[:-1]:
            service.sessions.prompt(id, prompt)
        if is_late:  # the engine comes to the boundary before the prompt is on disk

            def take_steps(courses: Courses, id: str) -> None:
                service.let(2)
                service.wait_for_steps(3)

            monkeypatch.setattr(Courses, "_checkpoint_of_change", take_steps)
        service.sessions.prompt(id, prompts[-1])
        service.let()
        service.wait_for(id)
        kept = [prompt for prompt in prompts if prompt != "refused"]
        assert service.sessions.get(id).prompt == ["a", *kept][-1]
        given = service.sessions._parts.store.courses.prompts(id)
        assert [it.prompt for it in given] == ["a", *kept]
        assert service.content(id) == file_of(frames_of(3, ["a"] + [["a", *kept][-1]] * 3))

    def test_extend_while_it_is_made(self, begin):
        service = begin(steps=3)
        id = service.sessions.create(new("a", 10)).id
        assert service.sessions.extend(id, 18).num_frames == 18
        service.let()
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(3, ["a"] * 5, 18))

    def test_extend_when_it_is_complete(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        before = service.sessions.whole_file(id)
        assert service.sessions.extend(id, 20).state == "in_progress"
        wait_until(lambda: service.sessions.get(id).frames_done == 20)
        service.wait_for(id)
        assert service.content(id) == file_of(frames_of(3, ["a"] * 5))
        assert service.sessions.whole_file(id) != before and not before.exists()
        with pytest.raises(ConfigError, match="has 20 frames already"):
            service.sessions.extend(id, 20)
        wait_until(lambda: not service.sessions.stats().videos)

    def test_delete_in_any_state(self, begin):
        service = begin()
        ids = [service.sessions.create(new(prompt, 8)).id for prompt in ("a", "a fails@1", "b")]
        service.wait_for(ids[0])
        service.wait_for(ids[1], "failed")
        paused = service.sessions.create(new("p", 400)).id
        service.sessions.pause(paused)
        running = service.sessions.create(new("r", 1000)).id
        for id in [*ids, paused, running]:
            service.sessions.delete(id)
            with pytest.raises(NotFound):
                service.sessions.get(id)
        assert list((service.folder / "sessions").iterdir()) == []
        assert {event.id for event in service.events if event == SessionState(event.id, "cancelled")} == {
            *ids,
            paused,
            running,
        }
        wait_until(lambda: not service.sessions.stats().videos)

    def test_whoever_reads_a_deleted_video_reads_on(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        content = service.content(id)
        with service.sessions.recording(id).path.open("rb") as file:
            service.sessions.delete(id)
            assert file.read() == content


class TestForks:
    @pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 7])
    def test_share_the_history_up_to_the_next_chunk(self, begin, steps):
        service = begin(steps=steps)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(steps)
        b, c = service.sessions.fork(id, [NewFork("b"), NewFork(seed=9, num_frames=20)])
        service.let()
        assert (b.source_id, b.prompt, b.seed, b.num_frames) == (id, "b", 3, 16)
        assert (c.prompt, c.seed, c.num_frames) == ("a", 9, 20)
        for one in (id, b.id, c.id):
            service.wait_for(one)
        shared = -(-steps // 3)
        assert service.content(id) == file_of(frames_of(3, ["a"] * 4))
        assert service.content(b.id) == file_of(frames_of(3, ["a"] * shared, then=[(3, "b")] * (4 - shared)))
        assert service.content(c.id) == file_of(frames_of(3, ["a"] * shared, then=[(9, "a")] * (5 - shared)))
        wait_until(lambda: not service.sessions.stats().videos)

    def test_may_be_secured_before_they_are_accepted(self, begin, monkeypatch):
        service = begin(steps=3)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(3)
        accept = Store.accept

        def accept_later(store: Store, *ids: str) -> None:
            wait_until(lambda: not any(service.sessions._forks.is_pending(fork_id) for fork_id in ids))
            accept(store, *ids)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "accept", accept_later)
            (fork,) = service.sessions.fork(id, [NewFork("b")])
        service.let()
        service.wait_for(fork.id)
        assert service.content(fork.id) == file_of(frames_of(3, ["a"], then=[(3, "b")] * 3))

    def test_that_share_nothing_may_go_on_while_they_are_secured(self, begin, monkeypatch):
        service = begin(steps=0)
        id = service.sessions.create(new("a", 16)).id
        take_checkpoint, separate = Parts.take_checkpoint, Forks._separate
        is_being_secured = threading.Event()

        def take_slowly(parts: Parts, fork_id: str) -> StoredCheckpoint:
            is_being_secured.set()
            wait_until(lambda: parts.store.find(fork_id).chunks_done > 0)  # `get` knows it once it is accepted
            return take_checkpoint(parts, fork_id)

        def separate_late(forks: Forks, ids: Iterable[str]) -> None:
            assert is_being_secured.wait(20)
            separate(forks, ids)

        monkeypatch.setattr(Parts, "take_checkpoint", take_slowly)
        monkeypatch.setattr(Forks, "_separate", separate_late)
        (fork,) = service.sessions.fork(id, [NewFork("b")])
        service.let()
        service.wait_for(fork.id)
        assert service.content(fork.id) == file_of(frames_of(3, ["b"] * 4))

    def test_of_a_completed_session(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        (fork,) = service.sessions.fork(id, [NewFork("b", kind="session")])
        assert fork.num_frames == 16 and fork.id.startswith("session_")
        service.wait_for(fork.id)
        assert service.content(fork.id) == file_of(frames_of(3, ["a"] * 2, then=[(3, "b")] * 2))
        assert service.sessions.get(id).state == "completed"
        wait_until(lambda: not service.sessions.stats().videos)
        service.sessions.delete(id)
        assert service.content(fork.id) == file_of(frames_of(3, ["a"] * 2, then=[(3, "b")] * 2))
        assert service.sessions.extend(fork.id, 20).state == "in_progress"

    def test_that_are_refused_leave_nothing(self, begin):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        for forks, error in (([], ConfigError), ([NewFork(), NewFork(num_frames=0)], ConfigError)):
            with pytest.raises(error):
                service.sessions.fork(id, forks)
        with pytest.raises(Busy):
            service.sessions.fork(id, [NewFork()] * 51)
        assert len(service.sessions.list().records) == 1
        assert [path.name for path in (service.folder / "sessions").iterdir()] == [id]
        wait_until(lambda: not service.sessions.stats().videos)

    def test_a_source_waits_for_its_forks_before_it_can_be_deleted(self, begin):
        service = begin(steps=1)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(1)
        (fork,) = service.sessions.fork(id, [NewFork("b")])  # the source is in the middle of its first chunk
        with pytest.raises(Conflict, match=r"is being forked.*delete those forks first"):
            service.sessions.delete(id)
        with pytest.raises(Conflict, match="begins at the next chunk boundary"):
            service.sessions.prompt(fork.id, "c")
        service.let()
        service.wait_for(fork.id)
        service.sessions.delete(id)
        assert service.content(fork.id) == file_of(frames_of(3, ["a"], then=[(3, "b")] * 3))

    def test_a_fork_can_be_deleted_before_it_begins(self, begin):
        service = begin(steps=1)
        id = service.sessions.create(new("a", 16)).id
        service.wait_for_steps(1)
        (fork,) = service.sessions.fork(id, [NewFork("b")])
        service.sessions.delete(fork.id)
        service.let()
        service.wait_for(id)
        service.sessions.delete(id)
        assert list((service.folder / "sessions").iterdir()) == []
        assert not service.sessions.stats().videos

    def test_a_completed_source_sleeps_again_when_its_fork_is_deleted_before_it_begins(self, begin, monkeypatch):
        service = begin()
        id = service.sessions.create(new("a", 8)).id
        service.wait_for(id)
        with monkeypatch.context() as patch:
            patch.setattr(Forks, "secure", lambda self, id: None)  # the housekeeper does not come to it
            (fork,) = service.sessions.fork(id, [NewFork("b")])
            service.sessions.delete(fork.id)
        wait_until(lambda: not service.sessions.stats().videos)

    def test_a_fork_of_a_fork(self, begin):
        service = begin()
        a = service.sessions.create(new("a", 8)).id
        service.wait_for(a)
        (b,) = service.sessions.fork(a, [NewFork("b")])
        service.wait_for(b.id)
        (c,) = service.sessions.fork(b.id, [NewFork("c", num_frames=20)])
        service.wait_for(c.id)
        assert service.content(c.id) == file_of(frames_of(3, ["a"] * 2, then=[(3, "b"), (3, "b"), (3, "c")]))


class TestLists:
    def test_pages_follow_each_other(self, begin):
        service = begin()
        ids = [service.sessions.create(new(kind=kind)).id for kind in ["video", "session"] * 3]
        seen, after = [], None
        while True:
            page = service.sessions.list(4, after)
            seen += [record.id for record in page.records]
            if not page.has_more:
                break
            after = seen[-1]
        assert seen == ids[::-1]
        assert [record.id for record in service.sessions.list(newest_first=False).records] == ids
        assert [record.id for record in service.sessions.list(2, ids[1], newest_first=False, kind="video").records] == [
            ids[2],
            ids[4],
        ]


class TestSubscribers:
    def test_one_that_raises_is_not_called_again_and_others_are(self, begin):
        service = begin()
        calls = []

        def fail(event) -> None:
            calls.append(event)
            raise RuntimeError("no")

        service.sessions.subscribe(None, fail)
        service.wait_for(service.sessions.create(new()).id)
        assert len(calls) == 1 and len(service.events) > 3

    def test_of_one_session_until_they_leave(self, begin):
        service = begin(steps=0)
        a, b = (service.sessions.create(new(prompt)).id for prompt in "ab")
        seen: list = []
        leave = service.sessions.subscribe(a, seen.append)
        gone: list = []
        service.sessions.subscribe(a, gone.append)()
        service.let()
        service.wait_for(a)
        service.wait_for(b)
        wait_until(lambda: SessionState(a, "completed") in seen)
        leave()
        leave()
        service.sessions.delete(a)
        assert {event.id for event in seen} == {a} and SessionState(a, "cancelled") not in seen and not gone

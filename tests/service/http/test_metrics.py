"""/metrics, and lines of the log: every figure from what was done, no session and no prompt in them."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from pagedvid.service.http.logs import JsonLines
from pagedvid.service.http.observer import Observer
from pagedvid.service.records import SessionError
from pagedvid.service.session_events import ChunkRecorded, SessionFailed, SessionState
from tests.service.http.fake_sessions import NewSession


def samples(client) -> dict[tuple[str, tuple[str, ...]], float]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_figures(client, sessions):
    id = sessions.create(NewSession("a red circle", 8)).id
    sessions.chunk(id)
    running = samples(client)
    assert running["pagedvid_streams", ("running",)] == 1
    sessions.chunk(id)
    client.get(f"/v1/videos/{id}")
    client.get("/v1/videos/video_0123456789")
    client.get("/nowhere")
    found = samples(client)
    assert all(name.startswith("pagedvid_") for name, _ in found)
    for name, labels, value in [
        ("pagedvid_pages", ("free",), 60),
        ("pagedvid_pages", ("reserved",), 30),
        ("pagedvid_pages", ("used",), 10),
        ("pagedvid_page_usage_ratio", (), 0.1),
        ("pagedvid_history_bytes", ("stored",), 40_000),
        ("pagedvid_history_bytes", ("bf16",), 320_000),
        ("pagedvid_worker_state", ("working",), 1),
        ("pagedvid_worker_state", ("dead",), 0),
        ("pagedvid_seconds_per_token", ("commit",), 2e-4),
        ("pagedvid_chunks_total", (), 2),
        ("pagedvid_frames_total", (), 8),
        ("pagedvid_sessions_ended_total", ("completed",), 1),
        ("pagedvid_time_to_first_chunk_seconds_count", (), 1),
        ("pagedvid_inter_chunk_seconds_count", (), 1),
        ("pagedvid_chunks_committed_total", (), 7),
        ("pagedvid_chunks_evicted_total", (), 5),
        ("pagedvid_shared_pages", (), 4),
        ("pagedvid_forks_total", (), 6),
        ("pagedvid_swaps_total", ("out",), 3),
        ("pagedvid_swaps_total", ("in",), 2),
        ("pagedvid_swap_bytes_total", ("out",), 3000),
        ("pagedvid_swap_bytes_total", ("in",), 2000),
        ("pagedvid_queue_seconds_bucket", ("0.5",), 4),
        ("pagedvid_queue_seconds_bucket", ("2",), 6),
        ("pagedvid_queue_seconds_bucket", ("+Inf",), 7),
        ("pagedvid_queue_seconds_sum", (), 9.5),
        ("pagedvid_http_requests_total", ("GET", "/v1/videos/{video_id}", "200"), 1),
        ("pagedvid_http_requests_total", ("GET", "/v1/videos/{video_id}", "404"), 1),
    ]:
        assert found[name, labels] == value, (name, labels)


def test_what_the_cache_is_like(client):
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    (sample,) = families["pagedvid_cache_info"].samples
    names = {"model": "demo", "codecs": "int4/int2", "page_bytes": "4096", "sink_chunks": "1", "recent_chunks": "4"}
    assert (sample.labels, sample.value) == (names, 1)


def test_labels_do_not_grow_with_what_clients_ask_for(client):
    for number in range(20):
        client.get(f"/v1/videos/video_{number:016d}")
        client.get(f"/path/{number}")
        client.request(f"METHOD{number}", "/v1/videos")
    samples(client)
    before = set(samples(client))
    client.get("/v1/videos/video_9999999999999999")
    client.get("/another/path")
    client.request("ANOTHER", "/v1/videos")
    assert set(samples(client)) == before


class TestObserver:
    def observer(self) -> Observer:
        self.now = 0.0
        self.registry = CollectorRegistry()
        return Observer(self.registry, lambda: self.now)

    def value(self, name: str) -> float:
        value = self.registry.get_sample_value(name)
        assert value is not None
        return value

    def test_times(self):
        observer = self.observer()
        observer(SessionState("a", "queued"))
        for self.now, chunk in ((3.0, 0), (4.0, 1), (4.5, 2)):
            observer(ChunkRecorded("a", chunk, 4 * chunk, 4, 4 * chunk + 4))
        assert self.value("pagedvid_time_to_first_chunk_seconds_sum") == 3.0
        assert self.value("pagedvid_inter_chunk_seconds_sum") == 1.5
        assert observer.frames_per_second() == pytest.approx(1.2)
        self.now = 100.0
        assert observer.frames_per_second() == 0

    def test_a_pause_is_no_delay(self):
        observer = self.observer()
        observer(ChunkRecorded("a", 0, 0, 4, 4))
        observer(SessionState("a", "paused"))
        self.now = 50.0
        observer(ChunkRecorded("a", 1, 4, 4, 8))
        assert self.value("pagedvid_inter_chunk_seconds_count") == 0

    def test_ended_sessions_are_forgotten(self):
        observer = self.observer()
        for number in range(50):
            id = f"session_{number}"
            observer(SessionState(id, "queued"))
            observer(ChunkRecorded(id, 0, 0, 4, 4))
            observer(SessionFailed(id, SessionError("a", "b")) if number % 2 else SessionState(id, "completed"))
        self.now = 20.0
        observer.frames_per_second()
        assert not observer._accepted and not observer._latest and not observer._frames


class TestLogs:
    def test_every_request_has_a_line(self, client, sessions, caplog):
        id = sessions.create(NewSession("a red circle", 8)).id
        with caplog.at_level(logging.INFO):
            client.get(f"/v1/sessions/{id}?secret=1")
        (record,) = (record for record in caplog.records if record.name == "pagedvid.service.http.logs")
        line = json.loads(JsonLines().format(record))
        assert (line["session_id"], line["method"], line["route"], line["status"]) == (
            id, "GET", "/v1/sessions/{id}", 200
        )  # fmt: skip
        assert line["seconds"] >= 0

    def test_no_prompt_and_no_key(self, make_client, caplog):
        client = make_client(api_key="a-very-secret-key-indeed")
        with caplog.at_level(logging.DEBUG):
            for word in ("a red circle", "unknown", "full"):
                client.post(
                    "/v1/videos", json={"prompt": word}, headers={"Authorization": "Bearer a-very-secret-key-indeed"}
                )
        lines = "".join(JsonLines().format(record) for record in caplog.records if record.name.startswith("pagedvid"))
        assert not any(words in lines for words in ("red circle", "unknown", "very-secret"))

    def test_errors_have_their_traceback_on_the_same_line(self):
        try:
            raise ValueError("x\ny")
        except ValueError as error:
            info = (type(error), error, error.__traceback__)
        line = JsonLines().format(logging.LogRecord("a", logging.ERROR, "b", 1, "hello\nworld", None, info))
        assert "\n" not in line
        assert "ValueError" in json.loads(line)["error"]

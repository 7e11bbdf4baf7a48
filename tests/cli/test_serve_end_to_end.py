"""The real command with the demo model: a process is started, used by OpenAI's client, stopped and started again."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import httpx
import numpy as np
import openai
import pytest

ROOT = Path(__file__).parents[2]
PROMPT = "a large red circle moving left on a black background"
FLAGS = ("--memory", "8MiB", "--set", "engine.denoise_steps=1", "--set", "generate.threads=1", "--stop-seconds", "15")
KEY = "a-key-of-the-end-to-end-test"

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@contextmanager
def serving(data: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running command: its address and its process, which is stopped in the end with SIGTERM."""
    command = [sys.executable, "-m", "pagedvid", "serve", "--port", "0", "--data", str(data), *FLAGS, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr))
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.match(r"demo is served at (http://127\.0\.0\.1:\d+); its videos are in ", line)
        assert found, (line, log)
        yield found[1], process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, "".join(log)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


def frames(content: bytes) -> np.ndarray:
    with av.open(io.BytesIO(content)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_openais_client_and_a_restart(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")
    with serving(tmp_path / "data", "--api-key-file", str(key_file)) as (address, _):
        assert httpx.get(f"{address}/v1/pool").status_code == 401
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        video = client.videos.create_and_poll(prompt=PROMPT, seconds="2", size="256x256", poll_interval_ms=50)
        assert (video.status, video.error) == ("completed", None)
        made = client.videos.download_content(video.id).read()
        assert frames(made).shape == (24, 256, 256, 3)
        for variant in ("thumbnail", "spritesheet"):
            assert client.videos.download_content(video.id, variant=variant).read()[:2] == b"\xff\xd8"
        remix = client.videos.remix(video.id, prompt=PROMPT.replace("red", "blue"))
        remix = client.videos.poll(remix.id, poll_interval_ms=50)
        assert (remix.status, remix.seconds, remix.remixed_from_video_id) == ("completed", "4", video.id)
        remixed = frames(client.videos.download_content(remix.id).read())
        assert len(remixed) == 48
        assert np.array_equal(remixed[:24], frames(made))  # the shared history
        assert [listed.id for listed in client.videos.list()] == [remix.id, video.id]
        with pytest.raises(openai.BadRequestError):
            client.videos.create(prompt="xyzzy")
        headers = {"Authorization": f"Bearer {KEY}"}
        assert 'pagedvid_worker_state{state="working"} 1.0' in httpx.get(f"{address}/metrics", headers=headers).text
    with serving(tmp_path / "data", "--api-key-file", str(key_file)) as (address, _):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        assert client.videos.download_content(video.id).read() == made
        assert client.videos.delete(remix.id).deleted
        assert [listed.id for listed in client.videos.list()] == [video.id]


def test_a_session_goes_on_after_a_stop(tmp_path: Path) -> None:
    body = {"prompt": PROMPT, "num_frames": 160, "seed": 1}
    with serving(tmp_path / "data") as (address, _):
        id = httpx.post(f"{address}/v1/sessions", json=body).json()["id"]
        with httpx.stream("GET", f"{address}/v1/sessions/{id}/stream.mp4", timeout=60) as response:
            before = next(response.iter_bytes())
        assert httpx.post(f"{address}/v1/sessions/{id}/pause").json()["state"] == "paused"
    with serving(tmp_path / "data") as (address, _):
        session = httpx.get(f"{address}/v1/sessions/{id}").json()
        assert (session["state"], session["pause_reason"]) == ("paused", "user")
        assert 0 < session["frames_done"] < 160
        httpx.post(f"{address}/v1/sessions/{id}/resume").raise_for_status()
        content = httpx.get(f"{address}/v1/sessions/{id}/stream.mp4", timeout=60).content
        assert content.startswith(before)
        assert len(frames(content)) == 160


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with serving(tmp_path / "data") as (address, process):
        assert httpx.get(f"{address}/readyz").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        process.send_signal = lambda number: None  # it has ended
        process.wait = lambda seconds=None: 0

"""docs/serve.md: its Python runs as shown against a real service, and what its tables name exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from PIL import Image

from pagedvid.engine.scheduler import MOST_WAITED_STEPS, POLICIES
from pagedvid.output.mp4 import VideoWriter
from serving.server import Server
from tests.docs.pages import DOCS, code_blocks, prose, tables

PAGE = DOCS / "serve.md"
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("serve") / "data", {"engine.denoise_steps": 2}) as server:
        yield server


def run(example: str, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names of an example after it has run in a folder."""
    assert ADDRESS in example
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "serve"}
    exec(compile(example.replace(ADDRESS, server.address), str(PAGE), "exec"), names)
    return names


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_the_official_client(server, tmp_path, monkeypatch):
    names = run(code_blocks(PAGE, "python")[0], server, tmp_path, monkeypatch)
    assert names["video"].status == "completed"
    assert num_frames(tmp_path / "video.mp4") == 48
    assert names["remix"].remixed_from_video_id == names["video"].id


def test_a_live_session_in_twenty_lines(server, tmp_path, monkeypatch):
    example = code_blocks(PAGE, "python")[1]
    assert len([line for line in example.splitlines() if line.strip()]) <= 24
    names = run(example, server, tmp_path, monkeypatch)
    assert num_frames(tmp_path / "live.mp4") == 96
    session = httpx.get(f"{server.address}/v1/sessions/{names['session']['id']}").json()
    assert session["prompt"] == "a large blue circle on a black background"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the commands send, of the demo model's size; the film has four seconds."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (32, 32)).save(folder / "start.png")
    writer = VideoWriter(folder / "film.mp4", 12, scale=1)
    writer.add(np.zeros((48, 32, 32, 3), dtype=np.uint8))
    writer.finish()
    writer.publish()
    return folder


def form_of(words: list[str], files: Path) -> dict[str, tuple]:
    """What curl's options -F send."""
    fields = dict(value.split("=", 1) for option, value in pairwise(words) if option == "-F")
    return {
        name: (value[1:], (files / value[1:]).read_bytes()) if value.startswith("@") else (None, value)
        for name, value in fields.items()
    }


def test_the_commands_of_curl(server, files):
    """Each answers with something else than an error in the request, apart from the id, which is none."""
    text = "\n".join(code_blocks(PAGE, "bash")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("curl ")]
    assert len(commands) == 6
    for words in commands:
        url = next(word for word in words if word.startswith(ADDRESS)).replace(ADDRESS, server.address)
        method = "DELETE" if "DELETE" in words else "POST" if {"-d", "-F"} & set(words) else "GET"
        body = words[words.index("-d") + 1] if "-d" in words else None
        headers = {"Content-Type": "application/json"} if body else {}
        expected = 404 if "video_ID" in url else 200
        how = {"files": form_of(words, files)} if "-F" in words else {"content": body, "headers": headers}
        assert httpx.request(method, url, **how).status_code == expected, words


def test_calls_of_the_table_exist(server):
    paths = httpx.get(f"{server.address}/openapi.json").json()["paths"]
    for call in re.findall(r"`(?:(?:GET|POST|DELETE) )?(/v1/sessions[\w/]*|\.\.\.?/[\w.]+)`", prose(PAGE)):
        path = call.replace("ID", "{id}").replace("...", "/v1/sessions/{id}")
        assert path in paths or path.endswith("/live"), call


def test_metrics_of_the_table_exist(server):
    new = {"prompt": "a large red circle on a black background", "num_frames": 48}
    id = httpx.post(f"{server.address}/v1/sessions", json=new).json()["id"]
    httpx.get(f"{server.address}/v1/sessions/{id}/stream.mp4", timeout=60)  # ends with the video
    text = httpx.get(f"{server.address}/metrics").text
    named = set(re.findall(r"\b(pagedvid_[a-z_]+)", prose(PAGE)))
    assert len(named) > 15
    for name in named:
        assert re.search(rf"^{name}(_bucket)?[ {{]|^# TYPE {name.removesuffix('_total')}", text, re.MULTILINE), name


def test_policies_of_the_table_exist():
    (table,) = (table for table in tables(PAGE) if "`fcfs`" in table)
    assert {name.strip("`") for name in table} == set(POLICIES)
    assert f"left out of {MOST_WAITED_STEPS} steps" in " ".join(PAGE.read_text().split())

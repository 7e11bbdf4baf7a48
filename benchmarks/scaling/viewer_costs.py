"""What viewers cost the HTTP process: `stream.mp4` over a loopback socket, to clients in another process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pagedvid.service.http.feed import Feeds
from pagedvid.service.http.stream import GrowingFile, LiveResponse, growing_bytes
from pagedvid.service.records import NewSession
from pagedvid.service.sessions import Sessions
from scaling.driver_costs import Frames, chunk_event, service
from scaling.timing import cost_of

_CLIENT = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1]) as answer:
    left = int(sys.argv[2])
    while left > 0:
        left -= len(answer.read(min(left, 65536)))
"""


def viewer_costs(folder: Path, frames_FHWC: Frames, num_chunks: int) -> dict[str, float]:
    """CPU microseconds: `look` for each chunk and viewer, at what is new in a recording; `megabyte` for each that is
    sent."""
    with service(folder) as (sessions, worker):
        id = sessions.create(NewSession("a prompt", 10**6)).id
        for number in range(num_chunks):
            worker.tell(chunk_event(id, number, frames_FHWC))
        while sessions.get(id).chunks_done < num_chunks:
            time.sleep(0.01)
        file = GrowingFile(sessions, id)
        look = cost_of(file.look, 200).cpu_us
        file.close()
        return {"look": look, "megabyte": _megabyte(sessions, id)}


def _megabyte(sessions: Sessions, id: str) -> float:
    num_bytes = sessions.recording(id).end
    feeds = Feeds(sessions)

    async def stream(request: Request) -> Response:
        return LiveResponse(growing_bytes(sessions, feeds, id), "video/mp4")

    config = uvicorn.Config(Starlette(routes=[Route("/", stream)]), port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    began = time.process_time()
    subprocess.run([sys.executable, "-c", _CLIENT, f"http://127.0.0.1:{port}/", str(num_bytes)], check=True)
    microseconds = 1e6 * (time.process_time() - began)
    server.should_exit = True
    thread.join()
    return microseconds / (num_bytes / 1e6)

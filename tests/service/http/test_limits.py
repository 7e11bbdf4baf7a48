"""Bodies that are too large or too slow, as the app sees them."""

from __future__ import annotations

import pytest

from tests.service.http.test_videos import error_of


def test_what_is_announced_counts_before_it_is_read(make_client):
    read = []

    def content():
        for _ in range(100):
            read.append(1)
            yield b"x" * 1024

    client = make_client(max_body="10KiB")
    response = client.post("/v1/videos", content=content(), headers={"Content-Type": "application/json"})
    assert (response.status_code, error_of(response)["code"]) == (413, "too_large")
    big = client.post("/v1/sessions", content=b"x" * 20_000, headers={"Content-Type": "application/json"})
    assert (big.status_code, "serve.max_body" in error_of(big)["message"]) == (413, True)
    assert big.headers["Connection"] == "close"


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_every_kind_of_body(make_client, kind):
    content = b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n' + b"a" * 20_000 + b"\r\n--x--\r\n"
    response = make_client(max_body="10KiB").post("/v1/videos", content=content, headers={"Content-Type": kind})
    assert response.status_code == 413


def test_what_fits_passes(make_client):
    client = make_client(max_body="10KiB")
    assert client.post("/v1/sessions", json={"prompt": "a" * 4000}).status_code == 200


@pytest.mark.parametrize("announced", ["-1", "x", "1" * 100, "1_0", "²"])
def test_strange_announcements_do_no_harm(make_client, announced):
    headers = {"Content-Length": announced.encode("utf-8"), "Content-Type": "application/json"}
    response = make_client().post("/v1/sessions", content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code in (200, 413)

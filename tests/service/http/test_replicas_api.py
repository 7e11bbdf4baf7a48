"""The endpoints about several workers."""

from __future__ import annotations

from tests.service.http.test_videos import error_of


def test_replicas_are_listed_drained_and_filled_again(client):
    first, second = client.get("/v1/replicas").json()["data"]
    assert first == {
        "number": 0, "state": "working", "is_draining": False, "num_sessions": 3, "num_pages": 100, "free_pages": 60
    }  # fmt: skip
    assert second["number"] == 1
    drained = client.post("/v1/replicas/1/drain").json()["data"]
    assert [replica["is_draining"] for replica in drained] == [False, True]
    filled = client.post("/v1/replicas/1/refill").json()["data"]
    assert [replica["is_draining"] for replica in filled] == [False, False]


def test_a_replica_that_is_not_there(client):
    response = client.post("/v1/replicas/7/drain")
    assert response.status_code == 400 and "give 0 to 1" in error_of(response)["message"]

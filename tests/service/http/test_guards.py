"""Who may call: the key, host names, pages of other sites; and what browsers are told."""

from __future__ import annotations

import pytest

from pagedvid.errors import ConfigError
from pagedvid.service.http import page_files
from pagedvid.service.http.auth import check_key, read_key_file
from tests.service.http.conftest import KEY
from tests.service.http.test_videos import error_of

WITH_KEY = {"Authorization": f"Bearer {KEY}"}


class TestKey:
    @pytest.mark.parametrize(
        "path", ["/v1/videos", "/v1/sessions", "/v1/model", "/v1/pool", "/metrics", "/readyz", "/docs", "/x"]
    )
    def test_nothing_is_open_without_it(self, make_client, path):
        client = make_client(api_key=KEY)
        response = client.get(path)
        assert (response.status_code, error_of(response)["code"]) == (401, "invalid_api_key")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert client.get(path, headers=WITH_KEY).status_code in (200, 404)

    def test_health_and_page_are_open(self, make_client, tmp_path, monkeypatch):
        (tmp_path / "index.html").write_text("the page")
        (tmp_path / "app.js").write_text("code")
        monkeypatch.setattr(page_files, "FOLDER", tmp_path)
        client = make_client(api_key=KEY)
        assert client.get("/healthz").status_code == 200
        assert client.get("/").text == "the page"
        assert client.get("/app.js").text == "code"
        assert client.get("/other.js").status_code == 401

    @pytest.mark.parametrize(
        "header",
        ["", KEY, "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"bearer {KEY}", f"Bearer  {KEY}", f"Basic {KEY}",
         "Bearer \xe9\xe9", f"Bearer {KEY}, Bearer {KEY}"],
    )  # fmt: skip
    def test_other_keys(self, make_client, header):
        client = make_client(api_key=KEY)
        response = client.get("/v1/videos", headers={"Authorization": header.encode("latin-1")})
        assert response.status_code == 401

    def test_two_headers(self, make_client):
        headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
        assert make_client(api_key=KEY).get("/v1/videos", headers=headers).status_code == 401

    def test_files(self, tmp_path):
        file = tmp_path / "key"
        file.write_text(f"{KEY}\n")
        assert read_key_file(file) == KEY
        for wrong in ("", "short", "with blanks in it, long enough", "zwölf-mal-zwölf-zeichen", f"{KEY}\n{KEY}"):
            with pytest.raises(ConfigError, match="holds no API key") as error:
                check_key(wrong, "the variable")
            assert not wrong or wrong not in str(error.value)
        with pytest.raises(ConfigError, match="no such file"):
            read_key_file(tmp_path / "none")


class TestHosts:
    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"])
    def test_names_of_this_machine(self, client, host):
        assert client.get("/healthz", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a b", "@"]
    )
    def test_other_names_may_be_somebody_elses_page(self, client, host):
        assert client.get("/healthz", headers={"Host": host}).status_code == 400

    def test_names_that_settings_give(self, make_client):
        client = make_client(hosts="video.example,10.0.0.1")
        assert client.get("/healthz", headers={"Host": "video.example"}).status_code == 200
        assert client.get("/healthz", headers={"Host": "localhost"}).status_code == 400


class TestOrigins:
    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9999", "http://[", "x", ""])
    def test_pages_of_others_are_refused(self, client, sessions, origin):
        response = client.post("/v1/videos", data={"prompt": "a red circle"}, headers={"Origin": origin})
        assert (response.status_code, error_of(response)["code"]) == (403, "foreign_origin")
        assert sessions.list().records == ()

    def test_the_own_page_may_call(self, client):
        headers = {"Origin": "http://localhost:8000"}
        assert client.post("/v1/videos", json={"prompt": "a red circle"}, headers=headers).status_code == 200

    def test_pictures_in_pages_of_others(self, client):
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert client.get("/v1/videos", headers=headers).status_code == 403
        assert client.get("/healthz", headers={**headers, "Sec-Fetch-Mode": "navigate"}).status_code == 200  # a link

    def test_no_page_is_told_that_it_may(self, client):
        response = client.get("/v1/videos")
        assert not any(name.lower().startswith("access-control") for name in response.headers)

    def test_sites_that_settings_name(self, make_client):
        client = make_client(cors_origins="https://studio.example", api_key=KEY)
        asked = {"Origin": "https://studio.example", "Access-Control-Request-Method": "POST"}
        allowed = client.options("/v1/videos", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://studio.example"
        headers = {"Origin": "https://studio.example", **WITH_KEY}
        response = client.get("/v1/videos", headers=headers)
        assert response.headers["access-control-allow-origin"] == "https://studio.example"
        assert client.get("/v1/videos", headers={**headers, "Origin": "https://evil.example"}).status_code == 403


def test_browsers_are_told_to_be_careful(client):
    response = client.get("/v1/videos")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["Cache-Control"] == "no-store"
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]

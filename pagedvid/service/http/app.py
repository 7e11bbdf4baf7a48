"""The app: endpoints, and the guards that every request passes on its way to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pagedvid import __version__
from pagedvid.service.http import health, live, replicas, sessions, videos
from pagedvid.service.http.auth import KeyGuard
from pagedvid.service.http.checks import Checks
from pagedvid.service.http.contract import SessionsLike
from pagedvid.service.http.errors import add_error_handlers
from pagedvid.service.http.feed import Feeds
from pagedvid.service.http.headers import SafeHeaders
from pagedvid.service.http.limits import BodyLimits
from pagedvid.service.http.logs import RequestLog
from pagedvid.service.http.metrics import Metrics
from pagedvid.service.http.origins import OriginGuard
from pagedvid.service.http.page_files import add_page, page_paths
from pagedvid.service.http.settings import ServeSettings
from pagedvid.service.http.state import Service

ABOUT = """Videos by OpenAI's video API, and sessions that are steered and watched while they are made.

Errors are OpenAI's: `{"error": {"message", "type", "param", "code"}}`. The WebSocket `/v1/sessions/{id}/live` is
described in docs/serve.md."""

MAX_THREADS = 256
"""Calls at once that wait, such as a fork for its source's next chunk; nobody else is to wait for them."""


def create_app(sessions_: SessionsLike, settings: ServeSettings) -> FastAPI:
    """The app of a service. The sessions are started and closed by the caller.

    `app.state.service.feeds.close()` sends clients away that listen; a server calls it before it waits for them.
    """
    feeds = Feeds(sessions_)
    metrics = Metrics(sessions_.stats, lambda: feeds.num_open)
    service = Service(sessions_, settings, Checks(settings), feeds, metrics)

    @asynccontextmanager
    async def observing(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = MAX_THREADS
        unsubscribe = await run_in_threadpool(sessions_.subscribe, None, metrics.observer)
        try:
            yield
        finally:
            await run_in_threadpool(unsubscribe)

    app = FastAPI(title="pagedvid", version=__version__, description=ABOUT, lifespan=observing, redoc_url=None)
    app.state.service = service
    add_error_handlers(app)
    for router in (videos.router, sessions.router, live.router, replicas.router, health.router):
        app.include_router(router)
    add_page(app)
    _add_guards(app, service)
    return app


def _add_guards(app: FastAPI, service: Service) -> None:
    """What a request passes, from the inside to the outside."""
    settings, limits = service.settings, service.settings.limits
    app.add_middleware(BodyLimits, max_bytes=limits.max_body, max_seconds=limits.body_seconds)
    if settings.api_key is not None:
        app.add_middleware(KeyGuard, key=settings.api_key, open_paths=page_paths() | {"/healthz"})
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        )
    app.add_middleware(OriginGuard, allowed=settings.cors_origins)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts, www_redirect=False)
    app.add_middleware(SafeHeaders)
    app.add_middleware(RequestLog, observe=service.metrics.count_request)

"""`pagedvid serve`: a video service over HTTP; see docs/serve.md."""

from __future__ import annotations

import argparse
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any

from pagedvid.cli import variables
from pagedvid.cli.cluster_parts import add_cluster_options
from pagedvid.cli.cores import let_threads_sleep
from pagedvid.cli.generate import resolved
from pagedvid.cli.options import add_config_options, by_rule, path_flag, require_one_device, resolve_options
from pagedvid.cli.replica_parts import REPLICA, workers_of
from pagedvid.cli.service_parts import logs_as_json, make_sessions, served_model
from pagedvid.cli.terminal import EXIT_SUCCESS, Interrupt
from pagedvid.config.rules import number, whole
from pagedvid.errors import ConfigError
from pagedvid.service.http.settings import ServeSettings, is_loopback
from pagedvid.shown import named, short

if TYPE_CHECKING:
    from pagedvid.service.sessions import Sessions

DEFAULT_DATA = Path("pagedvid-data")


def add_parser(subparsers: Any) -> None:
    """Adds `serve`."""
    parser = subparsers.add_parser("serve", help="make videos for clients over HTTP", description=__doc__)
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=path_flag,
        default=DEFAULT_DATA,
        help=f"folder of videos (default: {DEFAULT_DATA})",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", metavar="N", type=by_rule(whole(0, 65_535)), default=8000, help="default: 8000")
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=path_flag,
        help=f"file with the key that clients must send (default: the variable {variables.API_KEY})",
    )
    parser.add_argument("--no-api-key", action="store_true", help="with --open-to-everybody: let anybody in")
    parser.add_argument("--open-to-everybody", action="store_true", help="with --no-api-key: let anybody in")
    parser.add_argument(
        "--stop-seconds",
        metavar="SECONDS",
        type=by_rule(number(1, 3600)),
        default=20.0,
        help="longest time that stopping takes (default: 20)",
    )
    add_cluster_options(parser, REPLICA)
    add_config_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until it is interrupted; returns the exit code. Raises `PagedvidError` for bad input."""
    config = resolve_options(args).config
    require_one_device(config, "serve")
    _check_libraries()
    key = _api_key(args.api_key_file)
    _check_exposure(args, key)
    from pagedvid.service.http.server import listen

    let_threads_sleep()
    spec = resolved(config)
    settings = ServeSettings(served_model(spec), config.serve, key, is_loopback(args.host))
    with listen(args.host, args.port) as listener, workers_of(args, spec) as build_worker, logs_as_json():
        sessions = make_sessions(spec, args.data.resolve(), build_worker)  # replicas have other working folders
        _serve(sessions, settings, listener, args)
    return EXIT_SUCCESS


def _serve(sessions: Sessions, settings: ServeSettings, listener: socket, args: argparse.Namespace) -> None:
    """Starts the sessions, accepts requests until a signal comes, and stops in time. A second signal stops at once."""
    from pagedvid.service.http.app import create_app
    from pagedvid.service.http.server import Server

    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    ready = f"{settings.model.name} is served at http://{address}; its videos are in {named(args.data)}"
    server = Server(create_app(sessions, settings), settings.limits, args.stop_seconds, lambda: _say(ready))
    with Interrupt(lambda _: _say("stopping; once more to stop at once")) as interrupt:
        sessions.start()
        try:
            server.should_exit = interrupt.requested
            server.run(sockets=[listener])
        finally:
            sessions.close(server.seconds_left())


def _say(line: str) -> None:
    print(line, flush=True)


def _check_libraries() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serving needs libraries that are not installed ({error}): pip install pagedvid[serve]"
        ) from error


def _api_key(file: Path | None) -> str | None:
    """The key from the file or else from the variable. Raises ConfigError for one that is no key."""
    from pagedvid.service.http.auth import check_key, read_key_file

    if file is not None:
        return read_key_file(file)
    value = variables.value_of(variables.API_KEY)
    return None if value is None else check_key(value, f"the variable {variables.API_KEY}")


def _check_exposure(args: argparse.Namespace, key: str | None) -> None:
    """Raises ConfigError where anybody in the network could make videos without that being asked for twice."""
    is_asked_twice = args.no_api_key and args.open_to_everybody
    if key is None and not is_loopback(args.host) and not is_asked_twice:
        raise ConfigError(
            f"--host {short(args.host)} lets everybody who reaches this machine make videos; give --api-key-file FILE, "
            "or ask for it twice: --no-api-key --open-to-everybody"
        )

"""`epollkit serve APP`: run an application until Ctrl-C or SIGTERM."""
from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from epollkit import Listener, UsageError, _sockets
from epollkit.http import Request, Response, serve


def hello(request: Request) -> Response:
    """What is served when no application is named."""
    return Response(b"Hello from epollkit!\n", headers=((b"content-type", b"text/plain"),))


def load(name: str, app_dir: str) -> Callable[[Request], Response]:
    """The application that `module:attribute` names. UsageError, in one sentence, where there is none."""
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise UsageError(f"an application is named module:attribute, like myproject.web:app, not {name!r}")
    sys.path.insert(0, os.path.abspath(app_dir))
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name == missing or module_name.startswith(missing + "."):
            raise UsageError(f"there is no module {missing!r} in {os.path.abspath(app_dir)} "
                             "or on the Python path") from None
        raise UsageError(f"{module_name!r} can't be imported: it imports {missing!r}, which is not installed") from None
    except (Exception, SystemExit) as error:
        raise UsageError(f"{module_name!r} can't be imported: {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise UsageError(f"{module_name!r} has no attribute {attribute!r}; "
                             "give the name of an application in it") from None
        except Exception as error:
            raise UsageError(f"{name} can't be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"{name} is {type(found).__name__}, which can't be called; "
                         "an application takes a Request and returns a Response")
    return found    # type: ignore[no-any-return]


def seconds(text: str) -> float:
    """A duration: `30s`, `5m`, `1h`, or a number of seconds."""
    factor = {"s": 1, "m": 60, "h": 3600}.get(text[-1:].lower())
    try:
        value = float(text if factor is None else text[:-1]) * (factor or 1)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration above 0, like 30s, 5m, 1h or 2.5")
    return value


def default(option: str, fallback: Any) -> Any:
    """An option's default: the environment's EPOLLKIT_…, else ours. argparse converts what is a string."""
    return os.environ.get("EPOLLKIT_" + option.upper().replace("-", "_")) or fallback


def switch_on(option: str, value: bool | str) -> bool:
    """A switch from the command line is a bool already; from the environment it is text."""
    if isinstance(value, bool):
        return value
    text = value.lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off", ""):
        raise UsageError(f"EPOLLKIT_{option.upper().replace('-', '_')} is yes or no, not {value!r}")
    return text in ("1", "true", "yes", "on")


def add(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "serve", help="serve an application over HTTP/1.1", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Serve an application over HTTP/1.1. Every option can be given as an environment variable too: "
                    "--timeout-keep-alive is EPOLLKIT_TIMEOUT_KEEP_ALIVE.")
    parser.add_argument("app", nargs="?", metavar="MODULE:ATTRIBUTE", default=default("app", None),
                        help="takes a Request, returns a Response; without one, a built-in hello")

    def option(name: str, kind: Callable[[str], Any], fallback: Any, text: str) -> None:
        parser.add_argument("--" + name, type=kind, default=default(name, fallback), help=text,
                            metavar={int: "N", seconds: "DURATION"}.get(kind, "TEXT"))

    option("host", str, "127.0.0.1", "address to listen on")
    option("port", int, 8000, "port to listen on; 0 lets the kernel choose")
    option("uds", str, None, "listen on a unix socket at this path instead")
    option("app-dir", str, ".", "where to look for the application's module first")
    option("backlog", int, 2048, "connections that may wait to be accepted")
    option("limit-connections", int, 65536, "open connections; beyond it idle ones are closed, oldest first")
    option("limit-request-line", int, 8190, "bytes of a request line; beyond it 414")
    option("limit-request-fields", int, 100, "header fields of a request; beyond it 431")
    option("limit-request-field-size", int, 8190, "bytes of one header field; beyond it 431")
    option("limit-request-body", int, 1048576, "bytes of a request body, 1 MiB at most; beyond it 413")
    option("timeout-header", seconds, "10s", "for a whole request head")
    option("timeout-body", seconds, "30s", "between two reads of a body")
    option("timeout-write", seconds, "30s", "without progress of an answer")
    option("timeout-keep-alive", seconds, "75s", "between two requests")

    def switch(name: str, text: str) -> None:
        parser.add_argument("--" + name, action=argparse.BooleanOptionalAction, default=default(name, "no"), help=text)

    switch("reuse-port", "share the port with other processes (SO_REUSEPORT)")
    switch("defer-accept", "wait up to a second for a connection's first bytes before taking it (TCP_DEFER_ACCEPT)")
    parser.set_defaults(run=run)


def announce(listener: Listener) -> None:
    where = _sockets.describe(listener.address)
    url = where if where.startswith("unix:") else f"http://{where}"
    print(f"epollkit serves on {url} (Ctrl-C stops it)", flush=True)


def run(options: argparse.Namespace) -> int:
    app = hello if options.app is None else load(options.app, options.app_dir)
    serve(app, options.host, options.port, uds=options.uds, backlog=options.backlog,
          reuse_port=switch_on("reuse-port", options.reuse_port),
          defer_accept=switch_on("defer-accept", options.defer_accept),
          max_connections=options.limit_connections, on_listening=announce,
          limit_request_line=options.limit_request_line, limit_request_fields=options.limit_request_fields,
          limit_request_field_size=options.limit_request_field_size, limit_request_body=options.limit_request_body,
          timeout_header=options.timeout_header, timeout_body=options.timeout_body,
          timeout_write=options.timeout_write, timeout_keep_alive=options.timeout_keep_alive)
    return 0

"""A server process of the demo: epollkit as it is, epollkit with one bit of generation, or the naive twin."""
from __future__ import annotations

from epollkit import IN, Loop
from epollkit.demo.application import Application, admit
from epollkit.demo.children import Commands, Message, Reporter
from epollkit.demo.naive import NaiveServer
from epollkit.http import Request, Response, listen

HOST = "127.0.0.1"
REPORT_SECONDS = 0.25
PATIENCE_SECONDS = 100_000.0    # no deadline may close a connection: the crowd counts every close it did not cause


def main(config: Message) -> None:
    """Serve until told to stop. config: `kind` ("epollkit", "naive", "instance_bits_1"), `ports` (how many)."""
    if config["kind"] == "naive":
        serve_naive(config["ports"])
    else:
        serve_core(config["ports"], 1 if config["kind"] == "instance_bits_1" else 32)


def serve_core(ports: int, instance_bits: int) -> None:
    """epollkit's own HTTP server. The witness is the core's: see `Loop.stats`."""
    application = Application()
    peak = 0

    def app(request: Request) -> Response:
        return Response(application.answer(request.target, request.connection))

    def count() -> Message:
        nonlocal peak
        stats = loop.stats()
        live = stats.live - ports - 1       # without the listeners and the runner's commands
        peak = max(peak, live)
        stale = stats.stale_closed + stats.stale_recycled + stats.stale_orphan + stats.wrong_deliveries
        return {"connections": stats.accepted, "requests": application.requests, "concurrent": live,
                "concurrent_peak": peak, "stale_events": stale, "wrong_deliveries": stats.wrong_deliveries,
                "wrong_kills": stats.wrong_kills, "batches": stats.batches, "events": stats.events}

    def tick() -> None:
        reporter.report()
        loop.call_later(REPORT_SECONDS, tick)

    with Loop(instance_bits=instance_bits) as loop:
        listeners = [listen(loop, (HOST, 0), app, admit=admit, timeout_header=PATIENCE_SECONDS,
                            timeout_body=PATIENCE_SECONDS, timeout_write=PATIENCE_SECONDS,
                            timeout_keep_alive=PATIENCE_SECONDS) for _ in range(ports)]
        reporter = Reporter(count)
        commands = Commands({"begin": reporter.begin, "freeze": reporter.freeze, "stop": lambda _: loop.stop()})
        loop.register(commands, IN, commands.read)
        reporter.report(ports=[listener.address[1] for listener in listeners])
        loop.call_later(REPORT_SECONDS, tick)
        loop.run()
        reporter.report(final=True)


def serve_naive(ports: int) -> None:
    """The twin on select.epoll."""
    application = Application()
    server = NaiveServer(application.answer, admit)
    peak = 0

    def count() -> Message:
        nonlocal peak
        live = len(server.connections)
        peak = max(peak, live)
        return {"connections": server.accepted, "requests": application.requests, "concurrent": live,
                "concurrent_peak": peak, "stale_events": server.stale_events,
                "wrong_deliveries": server.wrong_deliveries, "wrong_kills": server.wrong_kills,
                "batches": server.batch, "events": server.events}

    try:
        reporter = Reporter(count)
        commands = Commands({"begin": reporter.begin, "freeze": reporter.freeze, "stop": lambda _: server.stop()})
        opened = [server.listen((HOST, 0)) for _ in range(ports)]
        server.watch(commands.fileno(), commands.read)
        reporter.report(ports=opened)
        server.run(reporter.report, REPORT_SECONDS)
        reporter.report(final=True)
    finally:
        server.close()

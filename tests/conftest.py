"""What every test starts from and ends with: the installed package, the build that was asked for, and nothing left
alive."""
from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from batches import Log, Stage, names_looked_up
from certificates import Certificates
from connections import Kit
from wire import Bench, Served

import epollkit
from epollkit import _resolver

DEBUG = epollkit.build_info()["build"] == "debug"
if DEBUG:
    from epollkit import _operations

_resolver.IDLE_SECONDS = 0.0        # its threads end with their work, so a test can wait for them

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"ip": "iproute2", "ss": "iproute2", "nft": "nftables"}      # Debian's, where it has another name

hypothesis.settings.register_profile("epollkit", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("epollkit")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:       # a shell's background job: children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "debug_build: looks at what only the debug build shows")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("debug_build") and not DEBUG:
            item.add_marker(pytest.mark.skip(reason="only the debug build shows this"))


def open_fds() -> dict[int, str]:
    """Every open descriptor and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass    # the listing's own descriptor
    return found


def pytest_collection_finish() -> None:
    """What is alive now stays: the collector need not walk it a thousand times."""
    gc.collect()
    gc.freeze()


def alive() -> dict[str, int]:
    """What the debug build counts: how many there are of each kind, loops, streams, their descriptors and so on."""
    return {kind: made - freed for kind, (made, freed) in _operations.counts().items()} if DEBUG else {}


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No descriptor, no thread, and nothing that the debug build counts outlives a test."""
    before, threads, counted = open_fds(), threading.active_count(), alive()
    yield
    names_looked_up()
    (request.node.funcargs or {}).clear()   # the other fixtures are over, but pytest would keep what they made, ...
    caplog.get_records("call").clear()  # ... and tracebacks
    if alive() != counted:
        gc.collect()
    now = alive()
    made = {kind: number - counted[kind] for kind, number in now.items() if number > counted[kind]}
    assert not made, f"made, and not freed: {made}"
    assert min(now.values(), default=0) >= 0, f"freed twice: {now}"
    after = open_fds()
    if after != before:
        gc.collect()        # what only a cycle keeps open is garbage, and warns as it goes
        after = open_fds()
    left = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert not left, f"left open: {left}"
    assert set(before) <= set(after), f"closed what was not the test's: {set(before) - set(after)}"
    assert threading.active_count() == threads, "a thread is still running"


@pytest.fixture
def loop() -> Iterator[epollkit.Loop]:
    """A loop; at the end it holds no slot and no timer that the test did not mean to leave to close()."""
    with epollkit.Loop() as made:
        yield made
        stats = made.stats()
        assert stats.wrong_deliveries == 0
        assert (stats.live, stats.timers) == (0, 0), f"left in the loop: {stats}"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Everything that a test opens; closed again at its end."""
    with Stage() as made:
        yield made


@pytest.fixture
def log() -> Log:
    """Who was called, in which order."""
    return Log()


@pytest.fixture
def bench(loop: epollkit.Loop) -> Iterator[Bench]:
    """The loop, and clients that talk to it."""
    with Bench(loop) as made:
        yield made


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    """Where to listen: once on TCP, once on a unix socket."""
    return ("127.0.0.1", 0) if request.param == "tcp" else str(tmp_path / "socket")


@pytest.fixture
def reported(loop: epollkit.Loop) -> list[tuple[Exception, object]]:
    """What the exception handler was told: (exception, source)."""
    found: list[tuple[Exception, object]] = []
    loop.set_exception_handler(lambda exception, source: found.append((exception, source)))
    return found


def find_peer(name: str) -> str:
    """The path of a real program that a test drives. Missing: skipped, or a failure with EPOLLKIT_REQUIRE_PEERS=1."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        message = f"{name} is not installed; on Debian: apt-get install {PACKAGES.get(name, name)}"
        if os.environ.get("EPOLLKIT_REQUIRE_PEERS") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, and what it signed: made once, by the `openssl` program."""
    return Certificates(tmp_path_factory.mktemp("certificates"), find_peer("openssl"))


@pytest.fixture
def peer() -> object:
    return find_peer


@pytest.fixture
def clock() -> Iterator[Any]:
    """Time that passes when a test says so; in the debug build."""
    with _operations.fake_clock() as made:
        yield made


@pytest.fixture
def listening(stage: Stage) -> Any:
    return stage.listening()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`epollkit serve` with tests/support/besieged.py, for clients that are processes."""
    with Served("--port", "0", "--app-dir", str(ROOT / "tests" / "support"), "besieged:app",
                directory=tmp_path_factory.mktemp("besieged")) as made:
        yield made


@pytest.fixture(scope="module")
def stress_package() -> Iterator[None]:
    """`stress` can be imported: from the source tree, behind the installed epollkit, which the tree would hide."""
    sys.path.append(str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.fixture
def make_kit(loop: epollkit.Loop, stage: Stage, certificates: Certificates) -> Callable[[str], Kit]:
    """Streams of a kind, "tcp", "unix" or "tls", whose peer is the test itself."""
    contexts = certificates.server_context(), certificates.client_context()
    return lambda kind: Kit(loop, stage, kind, contexts)

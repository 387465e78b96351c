"""A Prefect server that is away, hangs or cannot be started: told of plainly, and left in bounded time."""

import contextlib
import logging
import socket
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import httpx
import pytest

from clusterucb_core.errors import ServerUnavailable
from flows import orchestrator


@contextlib.contextmanager
def answering(code):
    """A server that answers every request with a code; yields its address."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


@pytest.fixture
def silent():
    """The address of a server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


@pytest.mark.parametrize("code", [200, 401, 404])
def test_a_server_that_answers_is_there(code, monkeypatch, tmp_path):
    with answering(code) as address:
        for named in (address, address.replace("://", "://me:opensesame@")):
            monkeypatch.setenv("PREFECT_API_URL", named)
            orchestrator.check_server(tmp_path)


def test_a_server_that_fails_is_told_of_without_its_password(monkeypatch, tmp_path):
    with answering(503) as address:
        monkeypatch.setenv("PREFECT_API_URL", address)
        with pytest.raises(ServerUnavailable, match="it answers 503 Service Unavailable"):
            orchestrator.check_server(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://me:opensesame@127.0.0.1:9/api")
    with pytest.raises(ServerUnavailable) as caught:
        orchestrator.check_server(tmp_path)
    assert "http://***@127.0.0.1:9/api does not answer" in str(caught.value)
    assert "opensesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:9/api", "Connection refused"),
        ("http://no-such-host.invalid/api", "not known|resolution"),
        ("127.0.0.1:4200/api", "missing an 'http"),
    ],
)
def test_an_address_that_leads_nowhere_is_named_with_what_to_do(address, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", address)
    with pytest.raises(ServerUnavailable, match=f"{reason}.*correct PREFECT_API_URL, or unset it"):
        orchestrator.check_server(tmp_path)


def test_a_server_that_hangs_is_not_waited_for(monkeypatch, tmp_path, silent):
    monkeypatch.setattr(orchestrator, "ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("PREFECT_API_URL", silent)
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"does not answer \(timed out\)"):
        orchestrator.check_server(tmp_path)
    assert time.monotonic() - began < 5


@pytest.fixture
def own(monkeypatch, tmp_path):
    """The folder of a run's own server."""
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_SERVER_DATABASE_CONNECTION_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "prefect").mkdir()
    return tmp_path / "prefect"


def test_a_sound_database_of_an_own_server_may_be_in_use(own, tmp_path):
    orchestrator.check_server(tmp_path)
    with contextlib.closing(sqlite3.connect(own / "prefect.db")) as con:
        con.execute("CREATE TABLE runs (id)")
        orchestrator.check_server(tmp_path)
        con.execute("BEGIN EXCLUSIVE")
        orchestrator.check_server(tmp_path)


def test_a_damaged_database_of_an_own_server_is_told_before_the_server_fails_on_it(own, tmp_path):
    (own / "prefect.db").write_bytes(b"no database, but longer than the header of one" * 5)
    with pytest.raises(ServerUnavailable, match=r"prefect\.db cannot be used \(.*move the file away"):
        orchestrator.check_server(tmp_path)


def test_an_own_server_that_ends_at_its_start_is_not_started_for_ever(monkeypatch):
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

    started = []

    def failing(_):
        started.append(1)
        return SimpleNamespace(poll=lambda: 3, terminate=lambda: None, wait=lambda timeout: 3)

    monkeypatch.setattr(SubprocessASGIServer, "_instances", {})
    monkeypatch.setattr(SubprocessASGIServer, "_run_uvicorn_command", failing)
    changed = {PREFECT_API_URL: None, PREFECT_SERVER_EPHEMERAL_ENABLED: True}
    with (
        temporary_settings(changed),
        pytest.raises(ServerUnavailable, match="it ended 3 times at its start"),
    ):
        orchestrator.start_own_server()
    assert len(started) == orchestrator.OWN_SERVER_STARTS


ADDRESS = "http://127.0.0.1:4200/api"


def failed_request(kind, url):
    return kind("all attempts failed", request=httpx.Request("POST", url))


def answered(code, url):
    request = httpx.Request("POST", url)
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(code, request=request))


@pytest.fixture
def named(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", ADDRESS)
    with temporary_settings({PREFECT_API_URL: ADDRESS}):
        yield


def test_a_request_that_did_not_reach_the_server_tells_that_it_is_away(named):
    error = RuntimeError("Failed to reach API")
    error.__cause__ = failed_request(httpx.ConnectError, f"{ADDRESS}/flow_runs/")
    told = str(orchestrator.server_fault(error))
    assert told.startswith(f"the Prefect server at {ADDRESS} was away or did not answer (ConnectError: all")
    assert told.endswith("give the same command again, which goes on from what was computed")
    assert "it answers 500" in str(orchestrator.server_fault(answered(500, f"{ADDRESS}/flow_runs/")))


@pytest.mark.parametrize(
    "error",
    [
        failed_request(httpx.ConnectError, "https://huggingface.co/api/models"),
        answered(404, f"{ADDRESS}/flow_runs/"),
        ValueError("no request at all"),
    ],
)
def test_other_errors_do_not_tell_that_the_server_is_away(named, error):
    assert orchestrator.server_fault(error) is None


def test_a_process_does_not_wait_at_its_end_for_a_server_that_takes_nothing():
    from prefect._internal.concurrency.services import QueueService

    hangs = threading.Event()

    class Sender(QueueService):
        async def _handle(self, item):
            import asyncio

            hangs.set()
            await asyncio.sleep(3600)

    sender = Sender.instance()
    sender.send("an event")
    assert hangs.wait(10)
    began = time.monotonic()
    orchestrator.leave_server(seconds=0.5)
    assert time.monotonic() - began < 5
    sender.drain()  # what Prefect does at the end of the process returns at once


def test_what_prefect_says_of_each_record_that_it_lost_becomes_one_warning(caplog):
    senders = [logging.getLogger(name) for name in orchestrator.SENDERS]
    with orchestrator.served():
        for sender in senders:
            sender.error("Service %r failed to process item %r", "EventsWorker", "all of it")
            sender.warning("Unable to connect")
            sender.info("as usual")
    told = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == ["the Prefect server did not take all that the run told it: its page has gaps"]
    caplog.clear()
    with orchestrator.served():
        pass
    assert caplog.records == []


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(None, orchestrator.LEAVE_SECONDS), (KeyboardInterrupt, orchestrator.INTERRUPTED_SECONDS)],
)
def test_who_interrupts_a_run_waits_less_for_its_server(error, seconds, monkeypatch):
    waited = []
    monkeypatch.setattr(orchestrator, "leave_server", lambda seconds, lost: waited.append(seconds) or True)
    with contextlib.suppress(KeyboardInterrupt), orchestrator.served():
        if error:
            raise error
    assert waited == [seconds]


def test_what_a_server_takes_is_waited_for():
    from prefect._internal.concurrency.services import QueueService

    taken = []

    class Sender(QueueService):
        async def _handle(self, item):
            import asyncio

            await asyncio.sleep(0.05)
            taken.append(item)

    sender = Sender.instance()
    for number in range(20):
        sender.send(number)
    orchestrator.leave_server(seconds=0.5)
    assert taken == list(range(20))


def test_what_fails_piece_by_piece_is_given_up_together(monkeypatch, caplog):
    from prefect._internal.concurrency.services import QueueService

    tried = []

    class Sender(QueueService):
        async def _handle(self, item):
            import asyncio

            await asyncio.sleep(0.2)
            tried.append(item)
            raise ConnectionError("refused")

    monkeypatch.setattr(orchestrator, "LEAVE_SECONDS", 1.0)
    with orchestrator.served():
        sender = Sender.instance()
        for number in range(100):
            sender.send(number)
    sender.drain()
    assert 0 < len(tried) < 50
    assert [record.message for record in caplog.records if record.name == orchestrator.__name__] == [
        "the Prefect server did not take all that the run told it: its page has gaps"
    ]


@pytest.fixture
def own_server(tmp_path, monkeypatch):
    """A server of the run's own in a folder, whose first start fails; return how often it was started."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    starts: list[int] = []

    def start() -> None:
        starts.append(1)
        if len(starts) == 1:
            raise ServerUnavailable("it ended 3 times at its start")

    monkeypatch.setattr(orchestrator, "_start", start)
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_API_URL}):
        yield starts


def test_a_database_that_a_killed_process_left_is_set_aside(own_server, tmp_path, caplog):
    for name in ("prefect.db", "prefect.db-wal", "prefect.toml"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    orchestrator.start_own_server()
    assert own_server == [1, 1]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name.partition(".unusable-")[0] for name in names] == ["prefect.db", "prefect.db", "prefect.toml"]
    assert names[1].endswith("Z-wal")
    assert "its database is set aside as" in caplog.text


def test_a_database_that_another_process_uses_stays(own_server, tmp_path):
    database = tmp_path / "prefect.db"
    database.write_text("in use", encoding="utf-8")
    with database.open("rb"), pytest.raises(ServerUnavailable, match="3 times"):
        orchestrator.start_own_server()
    assert own_server == [1]
    assert database.read_text(encoding="utf-8") == "in use"

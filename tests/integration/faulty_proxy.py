"""A TCP proxy in front of a service that can make it refuse, hang, break off or answer late."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

CHUNK = 65536
POLL_S = 0.1

Mode = Literal["pass", "hang", "refuse"]


@dataclass
class Proxy:
    """A proxy.

    Attributes:
        port: of loopback, where it listens.
        mode: `pass` lets everything through, `hang` takes connections and answers nothing, `refuse` ends
            every connection and listens no more.
        delay_s: how long each part of an answer is held back.
    """

    upstream: int
    port: int
    mode: Mode = "pass"
    delay_s: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def faulty_proxy(upstream: int) -> Iterator[Proxy]:
    """Start a proxy on a port of loopback in front of another port; it ends with the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        proxy = Proxy(upstream, probe.getsockname()[1])
    taking = threading.Thread(target=_take, args=(proxy,))
    taking.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        taking.join()


def _take(proxy: Proxy) -> None:
    threads: list[threading.Thread] = []
    while not proxy.ended.is_set():
        if proxy.mode == "refuse":
            proxy.ended.wait(POLL_S)
            continue
        with socket.create_server(("127.0.0.1", proxy.port)) as listening:
            listening.settimeout(POLL_S)
            while not proxy.ended.is_set() and proxy.mode != "refuse":
                with contextlib.suppress(TimeoutError):
                    taken, _ = listening.accept()
                    threads.append(threading.Thread(target=_serve, args=(proxy, taken)))
                    threads[-1].start()
    for thread in threads:
        thread.join()


def _serve(proxy: Proxy, taken: socket.socket) -> None:
    with taken, contextlib.suppress(OSError):
        while proxy.mode == "hang":  # until it is let through, or refused, or the end
            if proxy.ended.wait(POLL_S):
                return
        with socket.create_connection(("127.0.0.1", proxy.upstream)) as beyond:
            _pump(proxy, taken, beyond)


def _pump(proxy: Proxy, taken: socket.socket, beyond: socket.socket) -> None:
    while not proxy.ended.is_set() and proxy.mode != "refuse":
        ready, _, _ = select.select([taken, beyond], [], [], POLL_S)
        if proxy.mode == "hang":
            time.sleep(POLL_S)
            continue
        for source in ready:
            if not (part := source.recv(CHUNK)):
                return
            if source is beyond:
                time.sleep(proxy.delay_s)
            (taken if source is beyond else beyond).sendall(part)

"""An HTTP proxy in front of an object store that answers with errors, cuts connections, or is away.

Faults           what goes wrong, by chance that a seed decides, and when the store is away
FaultProxy       the proxy; `faults` may be replaced while it runs
run_proxy        the same as a context manager, in a thread of this process
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "FaultProxy", "Faults", "run_proxy"]

KINDS = ("500", "503", "cut", "lost answer", "half request", "half answer", "slow answer")
"""What can happen to a request: an answer with this status; the connection ends before it is passed on, or
after it without an answer; half of its body is passed on; half of the answer comes, or all of it slowly."""

REASONS = {
    "403": ("AccessDenied", "Access Denied"),
    "500": ("InternalError", "Try again."),
    "503": ("SlowDown", "Please reduce your request rate."),
}
"""Code and message of an answer by its status; 403 is none of `KINDS`, as it does not pass."""

SLOW_PIECES = 8
SLOW_SECONDS = 0.4
"""How many pieces a slow answer comes in, and how long it takes."""


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong.

    rate: the share of requests that meet one of `kinds`, each as likely.
    away_after: requests until the store is away; None for never. away_seconds: how long.
    """

    seed: int = 0
    rate: float = 0.0
    kinds: tuple[str, ...] = KINDS
    away_after: int | None = None
    away_seconds: float = 0.0

    def of(self, method: str, path: str, time_asked: int) -> str:
        """What a request meets: one of `kinds`, or nothing. The same whatever order requests come in."""
        chance = random.Random(f"{self.seed} {method} {path} {time_asked}")
        return chance.choice(self.kinds) if chance.random() < self.rate else ""


class FaultProxy:
    """Passes requests on to a server at 127.0.0.1, some with faults.

    Args:
        port: where it listens.
        server_port: of the store.
    """

    def __init__(self, port: int, server_port: int):
        self.port, self.server_port = port, server_port
        self.counts: Counter[str] = Counter()
        self.serving: set[asyncio.Task[None] | None] = set()
        self.use(Faults())

    def use(self, faults: Faults) -> None:
        """Begin with other faults, and count requests anew; `counts` goes on."""
        self.faults, self.asked, self.requests, self.back_at = faults, Counter[str](), 0, 0.0

    def is_away(self) -> bool:
        """Count a request, and say whether the store is away for it."""
        self.requests += 1
        if self.requests == self.faults.away_after:
            self.back_at = time.monotonic() + self.faults.away_seconds
        return time.monotonic() < self.back_at

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection: the first, as its answer closes the connection."""
        task = asyncio.current_task()
        self.serving.add(task)  # else nothing holds it while it waits
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.answer(reader, writer)
        finally:
            writer.close()
            self.serving.discard(task)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request, and let happen to it what the faults say."""
        if self.is_away():
            self.counts["away"] += 1
            writer.transport.abort()
            return
        head, body = await read_request(reader, writer)
        method, path = (word.decode() for word in head.split(b" ", 2)[:2])
        self.asked[f"{method} {path}"] += 1
        fault = self.faults.of(method, path, self.asked[f"{method} {path}"])
        self.counts[fault or "none"] += 1
        if fault in REASONS:
            writer.write(refusal(fault, method == "HEAD"))
        elif fault == "cut":
            writer.transport.abort()
        elif fault == "half request":
            await self.ask(head, body[: len(body) // 2], whole=False)
            writer.transport.abort()
        else:
            await send(writer, await self.ask(head, body), fault)
        if not writer.transport.is_closing():
            await writer.drain()

    async def ask(self, head: bytes, body: bytes, *, whole: bool = True) -> bytes:
        """The store's answer; nothing where the request is not `whole`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server_port)
        try:
            writer.write(head + body)
            await writer.drain()
            return await reader.read() if whole else b""
        finally:
            writer.close()


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    """Head and body of a request. The head asks for an answer that closes the connection."""
    lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if b"expect" in headers:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get(b"transfer-encoding") == b"chunked":
        body = await reader.readuntil(b"0\r\n\r\n")
    else:
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    kept = [line for line in lines[1:-2] if line.lower().partition(b":")[0] not in (b"connection", b"expect")]
    return b"\r\n".join([lines[0], *kept, b"Connection: close", b"", b""]), body


def refusal(status: str, head_only: bool) -> bytes:
    """An answer of a store that is not well, as S3 words it."""
    code, message = REASONS[status]
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + (b"" if head_only else body)


async def send(writer: asyncio.StreamWriter, answer: bytes, fault: str) -> None:
    """Pass an answer on, or as much of it as the fault lets through."""
    if fault == "lost answer":
        writer.transport.abort()
    elif fault == "half answer":
        writer.write(answer[: len(answer) // 2])
        await writer.drain()
        writer.transport.abort()
    elif fault == "slow answer":
        step = len(answer) // SLOW_PIECES + 1
        for start in range(0, len(answer), step):
            writer.write(answer[start : start + step])
            await writer.drain()
            await asyncio.sleep(SLOW_SECONDS / SLOW_PIECES)
    else:
        writer.write(answer)


@contextlib.contextmanager
def run_proxy(port: int, server_port: int) -> Iterator[FaultProxy]:
    """A proxy without faults, which runs in a thread of its own."""
    proxy = FaultProxy(port, server_port)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    started = asyncio.start_server(proxy.serve, "127.0.0.1", port, limit=1 << 26)
    server = asyncio.run_coroutine_threadsafe(started, loop).result()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(server.close)
        asyncio.run_coroutine_threadsafe(cancel_rest(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def cancel_rest() -> None:
    """End the connections that are open."""
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)

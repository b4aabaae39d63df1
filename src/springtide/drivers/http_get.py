"""One GET, enough for health probes and admin pages: no pool, no redirects, a limit on the answer."""

import asyncio

import httptools

from springtide.ports import Clock

BODY_BYTES_MAX = 16 * 1024 * 1024
"""The longest page that is read is Envoy's list of endpoints: 2 kB for each replica."""

_CHUNK_BYTES = 64 * 1024


class _Answer:
    """What the parser tells us of one response."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)

    def on_message_complete(self) -> None:
        self.complete = True


async def http_get(clock: Clock, host: str, port: int, target: str, timeout_s: float) -> tuple[int, bytes]:
    """GET `target` on a connection of its own: status and body.

    Raises OSError when it cannot be reached, cuts the answer short or does not speak HTTP; TimeoutError after
    `timeout_s`.
    """
    async with clock.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(f"GET {target} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\n\r\n".encode())
            return await _read(reader)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    answer = _Answer()
    parser = httptools.HttpResponseParser(answer)
    while not answer.complete:
        data = await reader.read(_CHUNK_BYTES)
        if not data:
            raise ConnectionResetError("the connection ended before the answer did")
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise ConnectionAbortedError(f"the answer is not HTTP: {error}") from error
        if answer.size > BODY_BYTES_MAX:
            raise ConnectionAbortedError(f"the answer is longer than {BODY_BYTES_MAX} bytes")
    return parser.get_status_code(), b"".join(answer.parts)

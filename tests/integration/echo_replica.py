"""A replica for tests: answers every request with its own id, and keeps the announce protocol.

`python echo_replica.py ANNOUNCE_PATH [option=value …]`. Options: `delay_s` before an answer, `status` of the
answers, and `mode`: `silent` never announces, `unready` never gets ready, `stubborn` ignores SIGTERM, `ends`
ends at once with status 3.
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path


class Replica:
    def __init__(self, options: dict[str, str]) -> None:
        self.name = os.environ.get("SPRINGTIDE_REPLICA_ID", "")
        self.mode = options.get("mode", "")
        self.delay_s = float(options.get("delay_s", "0"))
        self.status = options.get("status", "200")
        self.ready = self.mode != "unready"
        self.in_flight = 0
        self.idle: set[asyncio.StreamWriter] = set()
        self.ending = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not self.ending.is_set():
                self.idle.add(writer)
                head = await reader.readuntil(b"\r\n\r\n")
                self.idle.discard(writer)
                self.in_flight += 1
                try:
                    await self.answer(head, reader, writer)
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.idle.discard(writer)
            writer.close()

    async def answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = head.decode().lower().split("\r\n")
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("content-length:")), 0)
        await reader.readexactly(length)
        if lines[0].startswith("get /readyz "):
            status = "200" if self.ready else "503"
        else:
            await asyncio.sleep(self.delay_s)
            status = self.status
        closing = "connection: close\r\n" if self.ending.is_set() else ""
        reply = f"HTTP/1.1 {status} x\r\nx-replica: {self.name}\r\n{closing}content-length: 2\r\n\r\nok"
        writer.write(reply.encode())
        await writer.drain()

    async def run(self, announce: Path) -> int:
        if self.mode == "ends":
            print("no stomach for it", file=sys.stderr)
            return 3
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.drain)
        loop.add_signal_handler(signal.SIGTERM, self.end)
        if self.mode != "silent":
            beside = announce.with_suffix(".part")
            beside.write_text(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}))
            beside.replace(announce)
        await self.ending.wait()
        server.close()
        while self.in_flight:
            await asyncio.sleep(0.01)
        for writer in list(self.idle):
            writer.close()
        return 0

    def drain(self) -> None:
        self.ready = False

    def end(self) -> None:
        if self.mode != "stubborn":
            self.ready = False
            self.ending.set()


async def main() -> int:
    options = dict(word.split("=", 1) for word in sys.argv[2:])
    return await Replica(options).run(Path(sys.argv[1]))


if __name__ == "__main__":
    status = asyncio.run(main())
    sys.stderr.flush()
    os._exit(status)  # whatever a half-closed connection still waits for

"""A replica for tests: answers every request with its own id, and keeps the announce protocol.

`python echo_replica.py ANNOUNCE_PATH|PORT [option=value …]`. Options: `delay_s` before an answer, `status` of the
answers, `says` a line on its error output, `threads` that are busy, `holds_mb` of memory once it serves, and `mode`:
`silent` never announces, `unready` never gets ready, `stubborn` ignores SIGTERM, `ends` ends at once with status 3.
`GET /env/NAME` answers with the variable's value.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path


class Replica:
    def __init__(self, options: dict[str, str]) -> None:
        self.name = os.environ.get("SPRINGTIDE_REPLICA_ID", "")
        self.mode = options.get("mode", "")
        self.delay_s = float(options.get("delay_s", "0"))
        self.status = options.get("status", "200")
        self.says = options.get("says", "")
        self.threads = int(options.get("threads", "0"))
        self.holds_mb = int(options.get("holds_mb", "0"))
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
        body = "ok"
        if lines[0].startswith("get /env/"):
            body = os.environ.get(head.decode().split()[1].removeprefix("/env/"), "")
        closing = "connection: close\r\n" if self.ending.is_set() else ""
        reply = f"HTTP/1.1 {status} x\r\nx-replica: {self.name}\r\n{closing}content-length: {len(body)}\r\n\r\n{body}"
        writer.write(reply.encode())
        await writer.drain()

    async def run(self, where: str) -> int:
        if self.says:
            print(self.says, file=sys.stderr, flush=True)
        if self.mode == "ends":
            print("no stomach for it", file=sys.stderr)
            return 3
        port = int(where) if where.isdigit() else 0
        server = await asyncio.start_server(self.serve, "0.0.0.0" if port else "127.0.0.1", port)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self.drain)
        loop.add_signal_handler(signal.SIGTERM, self.end)
        if not port and self.mode != "silent":
            announce = Path(where)
            beside = announce.with_suffix(".part")
            beside.write_text(json.dumps({"port": server.sockets[0].getsockname()[1], "pid": os.getpid()}))
            beside.replace(announce)
        for _ in range(self.threads):
            subprocess.Popen([sys.executable, "-c", "while True: pass"])
        held = bytearray(self.holds_mb * 1024 * 1024)  # written, so that it is memory
        await self.ending.wait()
        del held
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
    return await Replica(options).run(sys.argv[1])


if __name__ == "__main__":
    status = asyncio.run(main())
    sys.stderr.flush()
    os._exit(status)  # whatever a half-closed connection still waits for

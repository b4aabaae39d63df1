"""A small HTTP service for `examples/web.toml`: the port is its argument, all it needs is Python."""  # noqa: INP001 - a program by itself, in no package

import contextlib
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType

OK, UNAVAILABLE = 200, 503


class Handler(BaseHTTPRequestHandler):
    """Greets; `/readyz` says whether more requests are welcome."""

    protocol_version = "HTTP/1.1"
    draining = False

    def do_GET(self) -> None:
        """Answer."""
        refused = self.path == "/readyz" and Handler.draining
        body = f"{os.environ.get('GREETING', 'hello from')} {os.environ.get('SPRINGTIDE_REPLICA_ID', 'nobody')}\n"
        self.send_response(UNAVAILABLE if refused else OK)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def handle(self) -> None:
        """Let clients come and go as they like."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def drain(_number: int, _frame: FrameType | None) -> None:
    """Be not ready from now on."""
    Handler.draining = True


def end(_number: int, _frame: FrameType | None) -> None:
    """Stop."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, drain)
    signal.signal(signal.SIGTERM, end)
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer((os.environ.get("HOST", "127.0.0.1"), int(sys.argv[1])), Handler).serve_forever()

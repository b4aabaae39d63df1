"""The time answers took, from what HAProxy logs to a socket of ours: one number for each answer that is sampled.

The socket holds a few datagrams and HAProxy never waits for it: what we do not read in time is lost, so that neither
side can hold up the other.
"""

import asyncio
import contextlib
import socket
from collections import deque
from pathlib import Path

from springtide.errors import BalancerError
from springtide.ports import Clock

KEPT_MAX = 4_096
"""Times that are kept: 64 kB for each service."""

ENOUGH = 100
"""So many answers give a 99th percentile; with fewer since the last sample, older ones are taken too."""

_OLD_S_MAX = 10.0
_FEWEST = 20
_READS_MAX = 256
_DATAGRAM_BYTES = 64


class LatencyLog:
    """Reads the times of one service's answers while an event loop runs."""

    def __init__(self, path: Path, clock: Clock) -> None:
        """Listen at `path`, in place of whoever did before. Raises BalancerError."""
        self.path = path
        self._clock = clock
        self._times: deque[tuple[float, int]] = deque(maxlen=KEPT_MAX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            self._socket.close()
            raise BalancerError(f"{path} cannot be listened at: {error}; name a folder of your own") from error
        self._socket.settimeout(0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read)

    def p99_ms(self, since_s: float) -> float | None:
        """The 99th percentile of the answers since that moment of the clock; None when too few are known."""
        now_s = self._clock.monotonic_s()
        recent = [ms for at_s, ms in self._times if at_s >= since_s]
        if len(recent) < ENOUGH:
            recent = [ms for at_s, ms in self._times if at_s >= now_s - _OLD_S_MAX][-ENOUGH:]
        if len(recent) < _FEWEST:
            return None
        recent.sort()
        return float(recent[min(len(recent) - 1, len(recent) * 99 // 100)])

    def close(self) -> None:
        """Stop listening. What HAProxy logs from then on is lost, which it does not mind."""
        if self._socket.fileno() >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        now_s = self._clock.monotonic_s()
        with contextlib.suppress(BlockingIOError, InterruptedError):
            for _ in range(_READS_MAX):
                text = self._socket.recv(_DATAGRAM_BYTES).strip()
                if text.isdigit():  # a request that ended before its answer has -1
                    self._times.append((now_s, int(text)))

"""Images on their way from a zone's cache to its nodes: all that pull share the cache's bandwidth equally.

All pulls are of one image, so the one that began first is done first, and what each has received by a moment is the
same for all that were there all along: one figure, which grows with the share of one pull (processor sharing).
"""

from collections import deque
from collections.abc import Callable

from springtide.twin.kernel import Kernel


class PullQueue:
    """The pulls of one zone. Sizes in MB, bandwidths in MB/s."""

    def __init__(self, kernel: Kernel, image_mb: float, cache_mb_per_s: float, node_mb_per_s: float) -> None:
        """Nothing is pulled yet. A node receives `node_mb_per_s` at most."""
        self._kernel = kernel
        self._image_mb = image_mb
        self._cache_mb_per_s = cache_mb_per_s
        self._node_mb_per_s = node_mb_per_s
        self._open = True
        self._received = 0.0  # MB that a pull has which was there from the beginning
        self._at_ms = kernel.now_ms
        self._pulls: deque[tuple[float, Callable[[], None]]] = deque()
        self._version = 0

    def __len__(self) -> int:
        """How many pull now."""
        return len(self._pulls)

    def pull(self, done: Callable[[], None]) -> None:
        """Begin one; `done` is called when the node has the image."""
        self._advance()
        self._pulls.append((self._received + self._image_mb, done))
        self._schedule()

    def open(self, *, is_open: bool) -> None:
        """Whether the cache answers, and has the image: while it does not, pulls wait where they are."""
        if is_open != self._open:
            self._advance()
            self._open = is_open
            self._schedule()

    def _share(self) -> float:
        if not self._open or not self._pulls:
            return 0.0
        return min(self._node_mb_per_s, self._cache_mb_per_s / len(self._pulls))

    def _advance(self) -> None:
        self._received += self._share() * (self._kernel.now_ms - self._at_ms) / 1000
        self._at_ms = self._kernel.now_ms

    def _schedule(self) -> None:
        """Put the next end down; what changes the share makes it void."""
        self._version += 1
        share = self._share()
        if not share:
            return
        left_ms = (self._pulls[0][0] - self._received) / share * 1000
        version = self._version
        self._kernel.at(self._kernel.now_ms + max(1, round(left_ms)), lambda: self._end(version))

    def _end(self, version: int) -> None:
        if version != self._version:
            return
        self._advance()
        finished = []
        while self._pulls and self._pulls[0][0] <= self._received + _CLOSE_MB:
            finished.append(self._pulls.popleft()[1])
        self._schedule()
        for done in finished:
            done()


_CLOSE_MB = 0.5
"""What is missing at the end of a millisecond's rounding; well below any image."""

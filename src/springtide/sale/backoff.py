"""How long to wait before trying again."""


class Backoff:
    """Waits that double from `first_s` up to `max_s`, until something succeeds."""

    def __init__(self, first_s: float, max_s: float) -> None:
        """Both in seconds."""
        self._first_s = first_s
        self._max_s = max_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Seconds to wait after one more failure."""
        wait_s = self._next_s
        self._next_s = min(2 * wait_s, self._max_s)
        return wait_s

    def reset(self) -> None:
        """It worked: begin again with the first wait."""
        self._next_s = self._first_s

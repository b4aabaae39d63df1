"""A waiting room as one process knows it: what the store said last. Where somebody stands is a look into memory."""

import hashlib
from bisect import bisect_right
from typing import Final

from springtide.decide.room import Shuffle, shuffle_bytes
from springtide.model import ENDED, LineState, RoomCall, RoomView

NOT_CALLED: Final = 0
PASSED: Final = -1
"""What `RoomMirror.called` says of numbers that are not in, besides a moment."""


_NOBODY: Final = float("inf")


def shuffle_of(seed: str, drawn: int) -> Shuffle:
    """The order in which `drawn` places stand by this seed: the same in every process."""
    return Shuffle(drawn, hashlib.shake_256(f"springtide room {seed}".encode()).digest(shuffle_bytes(drawn)))


class RoomMirror:
    """One room.

    `skew_ms` is how far the engine's clock is ahead of ours. `read_s` is when the store last answered, -inf while it
    has not; `asked_s` when somebody last asked here. `ended`: nobody will be called any more.
    Numbers from `waits_from` on wait for their turn.
    """

    __slots__ = (
        "_calls",
        "_pass_ms",
        "_shuffle",
        "_starts",
        "asked_s",
        "drawn",
        "ended",
        "joined",
        "number",
        "pace",
        "position",
        "read_s",
        "room_id",
        "serving",
        "skew_ms",
        "state",
        "waits_from",
    )

    def __init__(self, pass_ms: int) -> None:
        """Empty; a pass is good for `pass_ms` from its call on."""
        self._pass_ms = pass_ms
        self._starts: list[int] = []
        self._calls: list[RoomCall] = []
        self._shuffle = Shuffle(0, b"")
        self.number = self._shuffle.number
        self.room_id = b""
        self.drawn = -1
        self.joined = 0
        self.serving = 0
        self.state = LineState.OPEN
        self.ended = False
        self.waits_from: float = _NOBODY
        self.pace = 0.0
        self.position = "-"
        self.skew_ms = 0
        self.read_s = float("-inf")
        self.asked_s = 0.0

    def apply(self, view: RoomView, read_s: float, skew_ms: int) -> bool:
        """Take over what the store said; False when it is another room, and has to be asked for from its beginning."""
        room_id = view.room_id.encode()
        if self.room_id and room_id != self.room_id:
            return False
        self.room_id = room_id
        if view.drawn >= 0 and self.drawn < 0:
            self._shuffle = shuffle_of(view.seed, view.drawn)
            self.number = self._shuffle.number
            self.drawn = view.drawn
        self.joined = view.joined
        self.ended = view.state in ENDED
        self.waits_from = _NOBODY if self.ended or self.drawn < 0 else view.serving
        self.serving = view.serving
        self.state = view.state
        self.pace = view.pace
        self.position = view.position
        self.skew_ms = skew_ms
        self.read_s = read_s
        self._starts.extend(call.start for call in view.calls)
        self._calls.extend(view.calls)
        self._forget(view.at_ms - self._pass_ms)
        return True

    def called(self, number: int, now_ms: int) -> int:
        """Until when his pass is good, Unix milliseconds by the engine's clock; or NOT_CALLED, or PASSED.

        `now_ms` is by our clock. PASSED: he was not there when he was called, or his pass has ended.
        """
        if number >= self.serving:
            return NOT_CALLED
        at = bisect_right(self._starts, number) - 1
        if at < 0:
            return PASSED
        call = self._calls[at]
        if number >= call.stop:  # its call has not been read yet
            return NOT_CALLED
        skipped = call.skipped
        behind = bisect_right(skipped, number)
        until_ms = call.at_ms + self._pass_ms
        if (behind and skipped[behind - 1] == number) or until_ms <= now_ms + self.skew_ms:
            return PASSED
        return until_ms

    def _forget(self, before_ms: int) -> None:
        old = 0
        while old < len(self._calls) and self._calls[old].at_ms < before_ms:
            old += 1
        if old:
            del self._starts[:old], self._calls[:old]

"""Order ids of one replica: no two alike anywhere, and no randomness spent on each."""

from typing import Final

from springtide.ports import Ids

_BASE36 = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(first + second for first in _BASE36 for second in _BASE36)


class OrderIds:
    """A random prefix that no other replica has, and a count in base 36."""

    __slots__ = ("_head", "_low", "_prefix", "_stem")

    def __init__(self, ids: Ids) -> None:
        """The prefix is drawn once, so that an order costs no randomness."""
        self._prefix = ids.new("")
        self._low = len(_PAIRS)
        self._head = -1
        self._stem = ""

    def next(self) -> str:
        """An id that has not been given out."""
        low = self._low
        if low == len(_PAIRS):
            self._head += 1
            self._stem = f"{self._prefix}-{_base36(self._head)}"
            low = 0
        self._low = low + 1
        return self._stem + _PAIRS[low]


def _base36(number: int) -> str:
    letters = ""
    while number:
        number, digit = divmod(number, 36)
        letters = _BASE36[digit] + letters
    return letters

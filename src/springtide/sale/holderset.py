"""Which buyers may hold an order of a sale: a bitmap for each sale, kept by the journals of its buckets.

A bit stands for all buyers whose CRC-32 ends alike, so a buyer who is not in the set holds nothing, and one who is in
it has to be asked about. Nothing is read for a sale that refuses nobody.
"""

import asyncio
import zlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import structlog

from springtide.errors import InventoryError
from springtide.model import Holders
from springtide.ports import Clock
from springtide.sale.page import Page

SETS_MAX = 64
"""Sales whose holders are known, at most 1 MiB each; beyond, the one used least recently is forgotten."""

BITS_MIN = 1 << 20
BITS_MAX = 1 << 23
BITS_PER_BUYER = 16
"""A set begins with at least so many bits a buyer, and is made anew when only BITS_LEFT are left: at most a quarter of
those who hold nothing are asked about then. Beyond BITS_MAX it fills up further."""

BITS_LEFT = 4
READ_TIMEOUT_S = 1.0
LOAD_TIMEOUT_S = 15.0
LOADS_MAX = 4
BUCKETS_AT_ONCE = 32
SLOW_S = 0.25
"""When it takes longer than this to catch up, purchases go to the inventory for REST_SHARE times as long."""

REST_SHARE = 4.0
_RETRY_S = 0.5

_log = structlog.get_logger(__name__)


class HolderSource(Protocol):
    """What is needed of the inventory."""

    async def holders(self, sale: str, bucket: int, after: str) -> Holders:
        """See `ports.Inventory`."""


class HolderSet:
    """The buyers of one sale, in one epoch, up to a position of each bucket's journal."""

    __slots__ = ("_bits", "_mask", "bits_set", "crowded", "epoch", "marks", "positions", "rest_until_s", "used_s")

    def __init__(self, epoch: int, buckets: int, bits: int) -> None:
        """Empty. `bits` is a power of two, at least 8."""
        self._bits = bytearray(bits // 8)
        self._mask = bits - 1
        self.bits_set = 0
        self.crowded = False
        """Whether a larger set would tell buyers apart better."""
        self.epoch = epoch
        self.positions = [""] * buckets
        self.marks = [""] * buckets
        self.used_s = 0.0
        self.rest_until_s = 0.0

    def __contains__(self, buyer: str) -> bool:
        """False: the buyer had no order at the positions."""
        place = zlib.crc32(buyer.encode()) & self._mask
        return bool(self._bits[place >> 3] & (1 << (place & 7)))

    def add(self, buyers: Iterable[str]) -> None:
        """These have an order."""
        bits, mask = self._bits, self._mask
        for buyer in buyers:
            place = zlib.crc32(buyer.encode()) & mask
            bit = 1 << (place & 7)
            if not bits[place >> 3] & bit:
                bits[place >> 3] |= bit
                self.bits_set += 1
        self.crowded = self.bits < BITS_MAX and self.bits_set * BITS_LEFT > self.bits

    @property
    def bits(self) -> int:
        """How many there are."""
        return self._mask + 1

    def behind(self, marks: Sequence[str]) -> list[int]:
        """The buckets in which there may have been orders since, by their marks; all of them when there are none."""
        known = self.marks
        if not marks:
            return list(range(len(known)))
        return [bucket for bucket, mark in enumerate(marks) if not mark or mark != known[bucket]]


class HolderSets:
    """The sets of one replica. A set is loaded in the background when it is first wanted."""

    def __init__(self, inventory: HolderSource, clock: Clock) -> None:
        """Nothing is known."""
        self._inventory = inventory
        self._clock = clock
        self._sets: dict[str, HolderSet] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._not_before_s: dict[str, float] = {}

    def __len__(self) -> int:
        """Sales whose holders are known."""
        return len(self._sets)

    @property
    def fill(self) -> float:
        """The share of bits that are set, of the fullest set: so many of those without an order are asked about."""
        return max((one.bits_set / one.bits for one in self._sets.values()), default=0.0)

    @property
    def bytes_held(self) -> int:
        """Memory of all sets."""
        return sum(one.bits // 8 for one in self._sets.values())

    def known(self, page: Page, now_s: float) -> bool:
        """Whether this sale's holders can be caught up with quickly; begins to load them when they are not known."""
        known = self._sets.get(page.sale)
        if known is not None and known.epoch == page.epoch and not known.crowded:
            known.used_s = now_s
            return now_s >= known.rest_until_s
        wanted = page.sale not in self._loading and len(self._loading) < LOADS_MAX
        if wanted and now_s >= self._not_before_s.get(page.sale, now_s):
            self._loading[page.sale] = asyncio.get_running_loop().create_task(self._load(page))
        return False

    async def caught_up(self, page: Page) -> HolderSet | None:
        """The set with everybody who had an order at the page's moment; None when it is not known any more.

        That moment is, for each bucket, when its stock was read: what had no order since then is not read again. Raises
        InventoryError or TimeoutError; the set is then as it was.
        """
        known = self._sets.get(page.sale)
        if known is None or known.epoch != page.epoch:
            return None
        begun_s = self._clock.monotonic_s()
        async with self._clock.timeout(READ_TIMEOUT_S):
            await self._read(page.sale, known, known.behind(page.marks))
        now_s = self._clock.monotonic_s()
        if now_s - begun_s > SLOW_S:
            known.rest_until_s = now_s + REST_SHARE * (now_s - begun_s)
        return known

    async def close(self) -> None:
        """Load nothing more."""
        tasks = list(self._loading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _load(self, page: Page) -> None:
        try:
            async with self._clock.timeout(LOAD_TIMEOUT_S):
                self._keep(page.sale, await self._whole(page))
            self._not_before_s.pop(page.sale, None)
        except (InventoryError, TimeoutError):
            self._put_off(page.sale)
        except Exception:  # noqa: BLE001 - whatever went wrong, purchases go to the inventory, and it is tried again
            _log.exception("holders_not_read", sale=page.sale)
            self._put_off(page.sale)
        finally:
            del self._loading[page.sale]

    def _put_off(self, sale: str) -> None:
        if len(self._not_before_s) >= SETS_MAX:
            self._not_before_s.clear()
        self._not_before_s[sale] = self._clock.monotonic_s() + _RETRY_S

    async def _whole(self, page: Page) -> HolderSet:
        """All holders, in a set of the right size; read twice when the first guess at it was too small."""
        whole = HolderSet(page.epoch, page.buckets, BITS_MIN)
        await self._read(page.sale, whole, range(page.buckets))
        while whole.crowded:
            whole = HolderSet(page.epoch, page.buckets, _bits_for(whole.bits_set))
            await self._read(page.sale, whole, range(page.buckets))
        return whole

    async def _read(self, sale: str, known: HolderSet, behind: Sequence[int]) -> None:
        """Bring these buckets of the set up to now."""
        for start in range(0, len(behind), BUCKETS_AT_ONCE):
            buckets = behind[start : start + BUCKETS_AT_ONCE]
            answers = await asyncio.gather(
                *(self._inventory.holders(sale, bucket, known.positions[bucket]) for bucket in buckets)
            )
            for bucket, answer in zip(buckets, answers, strict=True):
                known.add(answer.buyers)
                known.positions[bucket] = answer.position
                known.marks[bucket] = answer.mark

    def _keep(self, sale: str, loaded: HolderSet) -> None:
        loaded.used_s = self._clock.monotonic_s()
        self._sets[sale] = loaded
        if len(self._sets) > SETS_MAX:
            del self._sets[min(self._sets, key=lambda one: self._sets[one].used_s)]


def _bits_for(buyers: int) -> int:
    return min(BITS_MAX, max(BITS_MIN, 1 << (buyers * BITS_PER_BUYER - 1).bit_length()))

"""Moving stock between two buckets that share no transaction: debit, credit, close.

1. *Debit*, at the source: its units go down and the open transfer is noted there, in one step. A transfer that is
   open already is answered as it stands.
2. *Credit*, at the target: its units go up and the transfer's number is noted there, in one step, unless it was
   before.
3. *Close*, at the source: the transfer is no longer open.

Any caller may do any step at any time, twice, or never; whoever finds a transfer open repeats all three.

No unit is lost: a transfer is closed only by a caller that had the target's answer to its credit, so until then it
stays open at the source, where every cut shows it.

No unit is credited twice: the source numbers its transfers to a target, 1, 2, 3, and each debit tells the lowest
number that is open. All below that were closed, hence credited before. The target keeps the highest such bound it was
told and the numbers it credited from there on; a credit below the bound, or of a number kept, does nothing, however
late it comes. The bound follows the transfers, and a source begins none that is TRANSFERS_WINDOW or more above its
lowest open number: so a target keeps at most that many numbers of one source.

A rebuild wipes both memories. Then the epoch stands in: a credit counts only while the target has the epoch of the
debit, in one epoch a bucket is made once, and between fence and restoration neither step is taken. The units of
transfers from before it are in the stock that was restored, because that comes from the ledger's equation.

An id moves stock once as long as it is one of the TRANSFERS_REMEMBERED that ended last at its source; said again
after that it is a new transfer, which moves units once more and loses none.
"""

from typing import Protocol

import msgspec

from springtide.errors import InventoryUnavailable, OutcomeUnknown
from springtide.model import STOCK_MAX, Transfer

TRANSFERS_OPEN_MAX = 1024
"""Open transfers of one bucket; beyond it InventoryUnavailable."""

TRANSFERS_WINDOW = 4096
"""Numbers between the oldest open transfer of two buckets and the newest; beyond it InventoryUnavailable."""

TRANSFERS_REMEMBERED = 4096
"""Ended transfers of one bucket whose ids are still known."""


class Debit(msgspec.Struct, frozen=True):
    """What the source says: the units, and while the transfer is open its epoch, number, and the lowest open number."""

    units: int
    epoch: int = 0
    number: int = 0
    lowest: int = 0


class Steps(Protocol):
    """The three steps; each is atomic and may be repeated."""

    async def debit(self, transfer: Transfer) -> Debit:
        """Take up to `quantity` units from the source, once."""

    async def credit(self, transfer: Transfer, debit: Debit) -> bool:
        """Add them to the target, once; False when that was done before."""

    async def end_transfer(self, transfer: Transfer) -> None:
        """Forget the transfer at the source: the target is known to have its units."""


async def carry(steps: Steps, transfer: Transfer) -> int:
    """Take all three steps, or those that are missing; the units that moved.

    Raises ValueError for a transfer that leads nowhere, and OutcomeUnknown when the units have left the source and the
    target does not answer.
    """
    if transfer.source == transfer.target or not 1 <= transfer.quantity <= STOCK_MAX:
        raise ValueError(f"transfer {transfer.transfer_id} needs two buckets and 1 to {STOCK_MAX} units")
    debit = await steps.debit(transfer)
    if debit.number:
        try:
            await steps.credit(transfer, debit)
            await steps.end_transfer(transfer)
        except InventoryUnavailable as error:
            raise OutcomeUnknown(f"transfer {transfer.transfer_id} is under way ({error}); repeat it") from error
    return debit.units

"""What happened in a run, as its client saw it, and what was there at its end. Kept as JSON, one record a line."""

from collections.abc import Iterable, Iterator

import msgspec

from springtide.model import Order, Sale, SkuTotals
from springtide.twin.torture.schedule import Fault


class Attempt(msgspec.Struct, frozen=True, gc=False, tag="attempt"):
    """One request to buy, and what came back. Moments are Unix milliseconds of the machine that all of it ran on.

    `status` is 0 when nothing came back. `code` is that of a refusal, `state` the order's in an acknowledgement;
    `order_id` is the order acknowledged, or with `limit_reached` the one held.
    """

    buyer: str
    key: str
    sku: str
    quantity: int
    sent_ms: int
    done_ms: int
    counter: str
    status: int
    code: str = ""
    order_id: str = ""
    state: str = ""


class Action(msgspec.Struct, frozen=True, gc=False, tag="action"):
    """A payment (`pay`) or cancellation (`cancel`) said to the back office until it answered; `outcome` is its word."""

    what: str
    order_id: str
    sent_ms: int
    done_ms: int
    status: int
    outcome: str = ""


class Struck(msgspec.Struct, frozen=True, tag="fault"):
    """A fault that struck. It counts when something was in flight (`in_flight`, at its target) at that moment."""

    fault: Fault
    at_ms: int
    healed_ms: int
    in_flight: int
    counted: bool
    note: str = ""


class Restocked(msgspec.Struct, frozen=True, tag="restock"):
    """Units that the merchant added while it ran; `status` is the back office's answer, 0 when there was none."""

    key: str
    sku: str
    quantity: int
    status: int


Record = Attempt | Action | Struck | Restocked


class History(msgspec.Struct, frozen=True):
    """All records of a run, each kind in the order of its ends."""

    attempts: tuple[Attempt, ...] = ()
    actions: tuple[Action, ...] = ()
    faults: tuple[Struck, ...] = ()
    restocks: tuple[Restocked, ...] = ()


class Ending(msgspec.Struct, frozen=True):
    """What was there when all was healed and at rest. `stock` is the inventory's, by SKU, over all buckets.

    `settled`: the ledger had reached the journal's end, and nothing moved. `given_up` names processes that could not be
    kept running, `processes_left` those that outlived the run.
    """

    sale: Sale
    orders: tuple[Order, ...]
    totals: tuple[SkuTotals, ...]
    stock: dict[str, int]
    settled: bool
    open_returns: int
    journal_entries: int
    given_up: tuple[str, ...] = ()
    processes_left: tuple[str, ...] = ()


def write_line(record: Record) -> bytes:
    """One record as a line."""
    return msgspec.json.encode(record) + b"\n"


def read_lines(lines: Iterable[bytes]) -> History:
    """The history that these lines hold. Raises msgspec.DecodeError for a line that is no record.

    A last line without its end was cut off while it was written: it is left out.
    """
    records = list(_decoded(lines))
    return History(
        tuple(one for one in records if isinstance(one, Attempt)),
        tuple(one for one in records if isinstance(one, Action)),
        tuple(one for one in records if isinstance(one, Struck)),
        tuple(one for one in records if isinstance(one, Restocked)),
    )


def _decoded(lines: Iterable[bytes]) -> Iterator[Record]:
    decode = msgspec.json.Decoder(Record).decode
    for line in lines:
        if line.endswith(b"\n"):
            yield decode(line)

"""Ids that a decision chooses: the same for the same snapshot, and no two ticks' or services' alike.

`Snapshot.run` is another for each process and each service, and no id is ever without it.
"""

import zlib

from springtide.model import Purchase, Snapshot

LETTERS_MAX = 64
"""Of an identifier (see `model.IDENTIFIER`), and of a client token (Alibaba Cloud ECS API, `ClientToken`)."""


SCHEDULED = "event"
"""How the tokens of purchases begin that an event's plan has scheduled."""


def replica_id(snapshot: Snapshot, zone: str, number: int) -> str:
    """The id of the so-many-th replica that this tick starts; the zone is cut where the id would be too long."""
    suffix = f"-{snapshot.run}-{snapshot.tick}-{number}"
    return zone[: LETTERS_MAX - len(suffix)] + suffix


def client_token(snapshot: Snapshot, zone: str, number: int = 0) -> str:
    """The token of this tick's so-many-th purchase in a zone."""
    return _short(f"{snapshot.run}-{snapshot.tick}-{zone}{f'-{number}' if number else ''}")


def scheduled_token(tag: str, event: str, number: int, purchase: Purchase) -> str:
    """The token of the so-many-th purchase of an event's plan: the same whenever, and by whomever, it is ordered.

    `tag` is the service's. What the event's own time is does not count: one that is moved is not bought for again.
    """
    content = (event, number, purchase.offer_key, purchase.count, purchase.order_ms)
    mark = zlib.crc32("/".join(map(str, content)).encode())
    return _short(f"{SCHEDULED}-{tag}-{mark:010d}-{purchase.zone}")


def is_scheduled(token: str) -> bool:
    """Whether a purchase is one of an event's plan."""
    return token.startswith(f"{SCHEDULED}-")


def _short(token: str) -> str:
    """The end is replaced by its check sum where it would be too long."""
    if len(token) <= LETTERS_MAX:
        return token
    return f"{token[: LETTERS_MAX - 9]}-{zlib.crc32(token.encode()):08x}"

"""Ids that a decision chooses: the same for the same snapshot, and no two ticks' or services' alike.

`Snapshot.run` is another for each process and each service, and no id is ever without it.
"""

import zlib

from springtide.model import Snapshot

LETTERS_MAX = 64
"""Of an identifier (see `model.IDENTIFIER`), and of a client token (Alibaba Cloud ECS API, `ClientToken`)."""


def replica_id(snapshot: Snapshot, zone: str, number: int) -> str:
    """The id of the so-many-th replica that this tick starts; the zone is cut where the id would be too long."""
    suffix = f"-{snapshot.run}-{snapshot.tick}-{number}"
    return zone[: LETTERS_MAX - len(suffix)] + suffix


def client_token(snapshot: Snapshot, zone: str) -> str:
    """The token of this tick's purchase in a zone; the end is replaced by its check sum where it would be too long."""
    token = f"{snapshot.run}-{snapshot.tick}-{zone}"
    if len(token) <= LETTERS_MAX:
        return token
    return f"{token[: LETTERS_MAX - 9]}-{zlib.crc32(token.encode()):08x}"

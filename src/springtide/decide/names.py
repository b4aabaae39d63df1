"""Ids that a decision chooses: the same for the same snapshot, and no two services' or ticks' alike."""

import zlib

from springtide.model import COUNTER, Snapshot

LETTERS_MAX = 64
"""Of an identifier (see `model.IDENTIFIER`), and of a client token (Alibaba Cloud ECS API, `ClientToken`)."""


def replica_id(snapshot: Snapshot, zone: str, number: int) -> str:
    """The id of the so-many-th replica that this tick starts; the front is cut where it would be too long."""
    suffix = f"-{snapshot.run}-{snapshot.tick}-{number}"
    if snapshot.service != COUNTER:
        suffix = f"-{_tag(snapshot.service)}{suffix}"
        zone = f"{snapshot.service}-{zone}"
    return zone[: LETTERS_MAX - len(suffix)] + suffix


def client_token(snapshot: Snapshot, zone: str) -> str:
    """The token of this tick's purchase in a zone; the end is replaced by its check sum where it would be too long."""
    token = f"{snapshot.run}-{snapshot.tick}-{zone}"
    if snapshot.service != COUNTER:
        token = f"{snapshot.run}-{snapshot.tick}-{_tag(snapshot.service)}-{snapshot.service}-{zone}"
    if len(token) <= LETTERS_MAX:
        return token
    return f"{token[: LETTERS_MAX - 9]}-{_tag(token)}"


def _tag(text: str) -> str:
    """Two services whose names run into those of zones, or are cut, still differ."""
    return f"{zlib.crc32(text.encode()):08x}"

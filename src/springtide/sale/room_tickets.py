"""Tickets of the waiting room and passes to buy, signed so that no counter has to look anything up.

A ticket is `t1.<buyer>.<sale>.<room>.<place>.<signature>`, a pass `p1.<buyer>.<sale>.<room>.<number>.<expires, Unix
seconds>.<signature>`: 128 bits of keyed BLAKE2b (RFC 7693) of all before the signature, in hexadecimal. Both name buyer
and sale: a ticket tells anybody no more than a position, and a pass is good only with that buyer's own token.
"""

import hashlib
from hmac import compare_digest

from springtide.errors import SpringtideError

KEY_BYTES_MIN = 32
TICKET_BYTES_MAX = 288
"""Longer than any ticket or pass: two identifiers of 64, a room, a place, a moment, a signature come to under 240."""

_KEY_BYTES = 64
_SIGNATURE_BYTES = 16
_SIGNATURE_LETTERS = 2 * _SIGNATURE_BYTES
_TICKET_PARTS = 5
_PASS_PARTS = 6
_PERSON = b"springtide room"


class TicketError(SpringtideError):
    """The ticket is none of ours, or for another sale; the message says what to do."""


class RoomKeys:
    """Signs and verifies; all counters of a shop have the same key."""

    __slots__ = ("_blank",)

    def __init__(self, master: bytes) -> None:
        """The key is derived from the master key of the buyer tokens. Raises ValueError for one under 32 bytes."""
        if len(master) < KEY_BYTES_MIN:
            raise ValueError(f"a master key needs at least {KEY_BYTES_MIN} bytes, not {len(master)}")
        key = hashlib.blake2b(b"waiting room", key=hashlib.sha512(master).digest(), person=_PERSON).digest()
        # The key's block is hashed once; each signature goes on from a copy.
        self._blank = hashlib.blake2b(key=key[:_KEY_BYTES], digest_size=_SIGNATURE_BYTES, person=_PERSON)

    def ticket(self, buyer: str, sale: str, room_id: str, place: int) -> str:
        """A ticket for this place."""
        return self._signed(f"t1.{buyer}.{sale}.{room_id}.{place}")

    def pass_(self, buyer: str, sale: str, room_id: str, number: int, expires_s: int) -> str:
        """A pass that lets this buyer in until then, Unix seconds by the engine's clock."""
        return self._signed(f"p1.{buyer}.{sale}.{room_id}.{number}.{expires_s}")

    def read_ticket(self, ticket: bytes, sale: bytes) -> tuple[bytes, bytes, int]:
        """Buyer, room and place. Raises TicketError. Nothing is read before the signature has been found good."""
        kind, buyer, for_sale, room_id, place = self._verified(ticket, _TICKET_PARTS)
        if kind != b"t1":
            raise TicketError("This is no ticket of the waiting room; join it again.")
        if for_sale != sale:
            raise TicketError("The ticket is for another sale; join the waiting room of this one.")
        return buyer, room_id, int(place)

    def read_pass(self, pass_: bytes, sale: str, buyer: str, now_s: float) -> tuple[str, int] | None:
        """The room and number that this pass of this buyer and sale is for; None when it is another's, or has ended."""
        try:
            kind, for_buyer, for_sale, room_id, number, expires_s = self._verified(pass_, _PASS_PARTS)
        except TicketError:
            return None
        if (kind, for_buyer, for_sale) != (b"p1", buyer.encode(), sale.encode()) or now_s >= int(expires_s):
            return None
        return room_id.decode(), int(number)

    def _signed(self, text: str) -> str:
        signer = self._blank.copy()
        signer.update(text.encode() + b".")
        return f"{text}.{signer.hexdigest()}"

    def _verified(self, signed: bytes, parts: int) -> list[bytes]:
        """Its parts but for the signature. Raises TicketError."""
        if len(signed) > TICKET_BYTES_MAX:
            raise TicketError("The ticket is too long to be one of ours; join the waiting room again.")
        text = signed[:-_SIGNATURE_LETTERS]
        signer = self._blank.copy()
        signer.update(text)
        if not compare_digest(signer.hexdigest().encode(), signed[-_SIGNATURE_LETTERS:]):
            raise TicketError("The ticket is not signed by this shop; join the waiting room again.")
        found = text.split(b".")
        if len(found) != parts + 1:
            raise TicketError("This is no ticket of the waiting room; join it again.")
        found.pop()
        return found

"""What the waiting room says, in HTTP's words: made of few parts, because it is said often."""

import math
from typing import Final

from springtide.decide.room import PACE_MIN
from springtide.model import LineState
from springtide.sale.problems import Problem
from springtide.sale.room_mirror import RoomMirror

POLL_S_MIN = 2
POLL_S_MAX = 20
"""How soon, and how late, somebody in the line is asked to ask again; before his turn he asks some POLL_SHARE times."""

POLL_SHARE = 10
_RETRY_MAX = 2 * POLL_S_MAX

NO_ROOM = Problem(404, "no_room", "No waiting room", "This sale has no waiting room: buy right away.")
BAD_TICKET = Problem(
    401,
    "bad_ticket",
    "No valid ticket",
    "Join with POST, and send the ticket that came back as Authorization: Bearer.",
)
TURN_PASSED = Problem(
    410,
    "turn_passed",
    "Your turn has passed",
    "Nobody asked with this ticket when its turn came, or its pass has ended; join again, at the end of the line.",
)
ROOM_GONE = Problem(
    410,
    "room_gone",
    "The line was begun anew",
    "This ticket is of a line that is no more; join the waiting room again.",
)
ROOM_FULL = Problem(503, "room_full", "The waiting room is full", "Nobody else can join now; come back later.")

HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\n"
JOINED: Final = (b'{"state":"waiting"}', b"Retry-After: 1\r\n")
"""Body and header for somebody who has a place, when nothing else is known here."""

_RETRIES: Final = tuple(b"Retry-After: %d\r\n" % seconds for seconds in range(_RETRY_MAX + 1))
_LINES: Final = {state: b',"line":"%b"' % state.encode() for state in LineState}


def retry(at_least_s: float, spread: float) -> bytes:
    """A `Retry-After` header; `spread`, in [0, 1), adds up to half of the time."""
    return _RETRIES[min(_RETRY_MAX, math.ceil(at_least_s * (1.0 + 0.5 * spread)))]


def waiting(mirror: RoomMirror, number: int, spread: float, *, pressed: bool) -> tuple[bytes, bytes]:
    """Body and header for somebody in the line. `position` counts from 1, those who have left included.

    It is what is said most often, hence without a call that could be spared.
    """
    position = number - mirror.serving + 1
    pace = mirror.pace
    if pace < PACE_MIN:
        body = b'{"state":"waiting","position":%d%b}' % (position, _LINES[mirror.state])
        at_least_s = POLL_S_MIN if position <= POLL_S_MAX else POLL_S_MAX
    else:
        due_s = int(position / pace) + 1
        body = b'{"state":"waiting","position":%d,"wait_s":%d%b}' % (position, due_s, _LINES[mirror.state])
        at_least_s = due_s // POLL_SHARE
        if at_least_s < POLL_S_MIN:
            at_least_s = POLL_S_MIN
        elif at_least_s > POLL_S_MAX or pressed:
            at_least_s = POLL_S_MAX
    return body, _RETRIES[int(at_least_s * (1.0 + 0.5 * spread))]


def before_opening(joined: int, opens_in_s: float, spread: float) -> tuple[bytes, bytes]:
    """Body and header for somebody in the pre-queue; he is asked back right after the opening, not all at once."""
    opens_in_s = max(0.0, opens_in_s)
    at_least_s = min(max(POLL_S_MIN, opens_in_s / POLL_SHARE), POLL_S_MAX, opens_in_s + 1.0)
    body = b'{"state":"prequeue","joined":%d,"opens_in_s":%d}' % (joined, math.ceil(opens_in_s))
    return body, retry(at_least_s, spread)


def admitted(pass_: str, until_ms: int, spread: float) -> tuple[bytes, bytes]:
    """Body and header for somebody who may buy."""
    body = b'{"state":"admitted","pass":"%b","expires_ms":%d}' % (pass_.encode(), until_ms)
    return body, retry(POLL_S_MIN * 2, spread)


def ended(reason: LineState) -> bytes:
    """The body when the line has ended: `sold_out` (everything is paid for) or `closed`."""
    return b'{"state":"ended","reason":"%b"}' % reason.encode()


def with_ticket(body: bytes, ticket: str) -> bytes:
    """The same body with the ticket in it."""
    return b'%b,"ticket":"%b"}' % (body[:-1], ticket.encode())

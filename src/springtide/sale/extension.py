"""What else a counter may serve: a waiting room, a page to buy on. The counter routes, checks the token, hands over."""

from typing import ClassVar, Protocol

from springtide.sale.glance import Request
from springtide.sale.page import Page
from springtide.sale.problems import Problem


class Exchange(Protocol):
    """A request that waits for its one answer, which may be given at once or later; both are safe when the client left.

    `started_s` is when it arrived, by the clock's monotonic seconds; `retry_after` makes a header.
    """

    started_s: float

    def reply(self, head: bytes, body: bytes, extra: bytes = b"") -> None:
        """Answer; `head` is the status line and fixed headers, `extra` more of them, each line ended."""

    def refuse(self, problem: Problem, extra: bytes = b"", body: bytes = b"") -> None:
        """Answer with a problem; `body` when it says more than the problem's own."""

    def retry_after(self, at_least_s: float = 0.0, span_s: float = 0.0) -> bytes:
        """A `Retry-After` header, ended: spread over `span_s` seconds, so that the refused do not return together."""


class Extension(Protocol):
    """Serves what its `claim` names: `b"/s/"`, all below that path; or `b"room"`, below `/v1/sales/{sale}/room`.

    With `for_buyers` only requests with a good buyer token of the sale come here, within the buyer's rate.
    """

    claim: ClassVar[bytes]
    for_buyers: ClassVar[bool]

    def handle(self, exchange: Exchange, request: Request, page: Page, buyer: str, rest: bytes) -> None:
        """Answer. `buyer` is '' unless `for_buyers`; `rest` is the path behind the claimed part, '' or from its '/' on.

        `page` is of the sale that the path names (behind `/s/` too); a sale that does not exist is answered before.
        """


class RoomDoor(Protocol):
    """Who is let in to buy, in a sale with a waiting room."""

    def admits(self, sale: str, buyer: str, pass_: bytes, now_ms: int) -> bool:
        """Whether this pass (b'' when none came) lets the buyer in now; `now_ms` is by our clock."""

    def bought(self, sale: str, buyer: str, quantity: int) -> None:
        """A buyer has got an order: his pass has served its purpose."""

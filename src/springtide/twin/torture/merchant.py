"""The merchant of a torture: adds units of the scarce SKUs while it runs, over the API, once for each key."""

import itertools

import msgspec

from springtide.ports import Chance, Clock
from springtide.twin.torture.client import Client
from springtide.twin.torture.history import Restocked

EVERY_S = (1.0, 4.0)
UNITS_MAX = 20


class Merchant:
    """Says each restock until the back office has answered; what it answered is in the history."""

    def __init__(self, client: Client, api_key: str, clock: Clock, chance: Chance) -> None:
        """`api_key` may restock."""
        self._client = client
        self._api_key = api_key
        self._clock = clock
        self._chance = chance

    async def run(self) -> None:
        """Restock until the client is stopped."""
        for number in itertools.count():
            await self._clock.sleep(self._chance.uniform(*EVERY_S))
            if self._client.stopping:
                return
            skus = self._client.scarce
            sku = skus[int(self._chance.random() * len(skus))].sku
            await self._restock(f"restock-{number}", sku, 1 + int(self._chance.random() * UNITS_MAX))

    async def _restock(self, key: str, sku: str, quantity: int) -> None:
        body = msgspec.json.encode({"quantity": quantity})

        def payload(host: str) -> bytes:
            head = (
                f"POST /v1/sales/{self._client.sale.sale}/skus/{sku}/restocks HTTP/1.1\r\nHost: {host}\r\n"
                f"Authorization: Bearer {self._api_key}\r\nIdempotency-Key: {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            return head.encode() + body

        response = await self._client.tell_backoffice(payload)
        self._client.log(Restocked(key, sku, quantity, response.status))

"""How fast one counter is on this machine when no rate is emulated: a short closed loop on a sale of its own."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from springtide.cli.roles import RoleSettings
from springtide.cli.world import Engines, Folders, command, read_announced_port, settings_file
from springtide.drivers.child import spawn
from springtide.drivers.system import SystemClock, SystemIds
from springtide.model import Sale, Sku
from springtide.ports import Ids
from springtide.sale.tokens import key_of, sign_token
from springtide.twin.crowd.buyers import Purchase
from springtide.twin.crowd.client import Pool, Request, Response
from springtide.twin.crowd.wire import order_request

CONNECTIONS = 64
WARM_S = 0.3
MEASURE_S = 2.0
ANSWER_S = 5.0
STOCK = 10_000_000
DAY_MS = 86_400_000
STOP_S = 5.0
_CREATED = 201
_SALE = "unthrottled"
_SKU = "unit"


class _ClosedLoop:
    """Each connection sends its next purchase when the last one is answered; a new buyer each time."""

    def __init__(self, pool: Pool, host: str, key: bytes, expires_s: int, ids: Ids) -> None:
        self.acknowledged = 0
        self._pool = pool
        self._host = host
        self._key = key
        self._expires_s = expires_s
        self._prefix = ids.new("m")
        self._sent = 0

    def send(self) -> None:
        self._sent += 1
        buyer = f"{self._prefix}{self._sent}"
        token = sign_token(self._key, buyer, _SALE, self._expires_s)
        purchase = Purchase(buyer=buyer, key=buyer, sku=_SKU, quantity=1, token=token)
        request = Request(order_request(self._host, _SALE, purchase), self._answered, lambda _: None)
        self._pool.send(request)

    def _answered(self, response: Response) -> None:
        self.acknowledged += response.status == _CREATED
        if response.status:
            self.send()


async def unthrottled_rate(folders: Folders, engines: Engines, settings: RoleSettings, clock: SystemClock) -> float:
    """Durable purchases per second through one counter without `rate_max`; generator, engines and recorder beside it.

    It sells from a sale of its own, which is no part of any other figure of the run.
    """
    now_ms = clock.now_ms()
    sku = Sku(sku=_SKU, title="Measured", price_fen=0, stock=STOCK)
    sale = Sale(_SALE, "Measured", (sku,), opens_ms=now_ms, closes_ms=now_ms + DAY_MS, hold_ms=DAY_MS)
    await engines.ledger.publish(sale)
    await engines.inventory.publish(sale)
    async with AsyncExitStack() as stack:
        port = await _start_counter(stack, folders, settings, clock)
        pool = Pool(f"http://127.0.0.1:{port}", clock, ANSWER_S, CONNECTIONS, CONNECTIONS)
        await pool.open()
        stack.push_async_callback(pool.close)
        key = key_of(bytes.fromhex(settings.token_master))
        loop = _ClosedLoop(pool, f"127.0.0.1:{port}", key, now_ms // 1000 + 3600, SystemIds())
        for _ in range(CONNECTIONS):
            loop.send()
        await clock.sleep(WARM_S)
        before, started_s = loop.acknowledged, clock.monotonic_s()
        await clock.sleep(MEASURE_S)
        return (loop.acknowledged - before) / (clock.monotonic_s() - started_s)


async def _start_counter(stack: AsyncExitStack, folders: Folders, settings: RoleSettings, clock: SystemClock) -> int:
    free = msgspec.structs.replace(settings, rate_max=None)
    path = settings_file(folders, "unthrottled", free)
    announce: Path = folders.run / "unthrottled-port.json"
    arguments = ["--settings", str(path), "--replica-id", "unthrottled", "--announce", str(announce)]
    child = spawn("unthrottled", command("counter", *arguments), folders.log("unthrottled"))
    stack.push_async_callback(child.stop, clock, STOP_S)
    return await read_announced_port(child, announce, clock)

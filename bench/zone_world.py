"""An order path over three zones, and zones to lose: a Valkey Cluster, PostgreSQL's copies, a counter, and the workers.

Counter, recorder and back office run as processes of their own, outside the zones that are lost. All primaries, those
of Valkey and PostgreSQL's, are brought into the first zone before it is lost.
"""

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import httpx
import msgspec

from springtide.cli.roles import RoleSettings
from springtide.cli.supervisor import Supervisor, starts
from springtide.cli.world import Folders, read_announced_port, role, settings_file
from springtide.config import CounterSettings
from springtide.drivers.embedded_postgres_group import EmbeddedPostgresGroup, start_postgres_group
from springtide.drivers.embedded_valkey_cluster import EmbeddedValkeyCluster, start_valkey_cluster
from springtide.drivers.netns import Namespace, PrivateNetwork
from springtide.drivers.postgres import PostgresLedger, migrate
from springtide.drivers.system import SystemClock
from springtide.drivers.valkey import ValkeyInventory
from springtide.drivers.valkey_cluster import ClusterStore
from springtide.drivers.valkey_keeper import ValkeyKeeper
from springtide.drivers.valkey_library import prepare
from springtide.drivers.valkey_view import Server
from springtide.errors import InventoryError, LedgerError
from springtide.model import OrderState, Payment, Sale, Sku
from springtide.sale.audit import AuditReport, Comparison, audit, compare_acknowledged
from springtide.sale.orders import bucket_of
from springtide.sale.tokens import TokenKeys, key_of
from springtide.sale.webhook import SIGNATURE_HEADER, sign

CLOCK = SystemClock()
ZONES = ("zone-a", "zone-b", "zone-c")
SALE = "zones"
SKU = "tea"
PRICE_FEN = 500
STOCK = 1_000_000
BUCKETS = 6
BUYERS = 18
PAYERS = 4
UNPAID_MAX = 8
ATTEMPT_S = 4.0
PAUSE_S = 0.1
PACE_S = 0.05
ENDED_S = 30.0
STARTED_S = 30.0
NEVER_S = 1e9
"""The primaries are to stay where `gather_primaries` has brought them."""

_MASTER = b"m" * 32
_SECRET = b"w" * 32


class How(StrEnum):
    """How a zone is lost: its processes die, or stand still, or no packet comes or goes."""

    KILL = "killed"
    FREEZE = "frozen"
    CUT = "black-holed"


class Part(StrEnum):
    """What of a zone is lost."""

    VALKEY = "Valkey"
    POSTGRES = "PostgreSQL"


BOTH = frozenset(Part)


@dataclass(frozen=True)
class Done:
    """Something that was acknowledged, when it was begun and when the answer came (monotonic seconds)."""

    order_id: str
    buyer: str
    began_s: float
    ended_s: float

    @property
    def bucket(self) -> int:
        return bucket_of(self.buyer, BUCKETS)

    @property
    def promise(self) -> tuple[str, str, str, str, int]:
        return self.order_id, self.buyer, "k", SKU, 1


@dataclass
class Stream:
    """Buyers who buy one after the other, each with retries by his key until he has an order; some of them pay."""

    counter: str
    backoffice: str
    orders: list[Done] = field(default_factory=list)
    payments: list[Done] = field(default_factory=list)
    refused: int = 0
    going: bool = True
    _buyers: list["asyncio.Task[None]"] = field(default_factory=list)
    _payers: list["asyncio.Task[None]"] = field(default_factory=list)
    _unpaid: "asyncio.Queue[tuple[str, str] | None]" = field(default_factory=lambda: asyncio.Queue(UNPAID_MAX))

    def start(self) -> None:
        self._buyers = [asyncio.create_task(self._buy(number)) for number in range(BUYERS)]
        self._payers = [asyncio.create_task(self._pay()) for _ in range(PAYERS)]

    async def stop(self) -> None:
        """Let everyone end what he began."""
        self.going = False
        async with CLOCK.timeout(ENDED_S):
            await asyncio.gather(*self._buyers)
            for _ in self._payers:
                await self._unpaid.put(None)
            await asyncio.gather(*self._payers)

    async def _buy(self, number: int) -> None:
        keys = TokenKeys((key_of(_MASTER),))
        async with httpx.AsyncClient(timeout=ATTEMPT_S, trust_env=False) as client:
            for purchase in itertools.count():
                if not self.going:
                    return
                buyer = f"b-{number}-{purchase}"
                headers = {
                    "Authorization": f"Bearer {keys.sign(buyer, SALE, CLOCK.now_ms() // 1000 + 600)}",
                    "Idempotency-Key": "k",
                }
                url = f"{self.counter}/v1/sales/{SALE}/orders"
                began_s = CLOCK.monotonic_s()
                answer = await self._until_ok(client, url, b'{"sku":"tea","quantity":1}', headers)
                order_id = str(answer["order_id"])
                self.orders.append(Done(order_id, buyer, began_s, CLOCK.monotonic_s()))
                if not self._unpaid.full():
                    self._unpaid.put_nowait((order_id, buyer))
                await CLOCK.sleep(PACE_S)

    async def _pay(self) -> None:
        async with httpx.AsyncClient(timeout=ATTEMPT_S, trust_env=False) as client:
            while (order := await self._unpaid.get()) is not None:
                order_id, buyer = order
                body = msgspec.json.encode(Payment(f"p-{order_id}", order_id, SALE, buyer, PRICE_FEN))
                began_s = CLOCK.monotonic_s()
                headers = {SIGNATURE_HEADER: sign(_SECRET, body)}
                answer = await self._until_ok(client, f"{self.backoffice}/v1/payments", body, headers)
                if answer["outcome"] == "accepted":
                    self.payments.append(Done(order_id, buyer, began_s, CLOCK.monotonic_s()))

    async def _until_ok(
        self, client: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str]
    ) -> dict[str, object]:
        while True:
            with suppress(httpx.HTTPError):
                answer = await client.post(url, content=body, headers={**headers, "Content-Type": "application/json"})
                if answer.is_success:
                    found: dict[str, object] = answer.json()
                    return found
                self.refused += 1
            await CLOCK.sleep(PAUSE_S)


@dataclass(frozen=True)
class Proof:
    """The audit, the promises that were not kept, and the payments that were accepted and are gone."""

    report: AuditReport
    kept: Comparison
    unpaid: list[str]

    @property
    def lost(self) -> int:
        return len(self.kept.lost) + len(self.kept.duplicates) + len(self.kept.mismatched) + len(self.unpaid)


@dataclass(frozen=True)
class ZoneWorld:
    """All that runs."""

    cluster: EmbeddedValkeyCluster
    group: EmbeddedPostgresGroup
    keeper: ValkeyKeeper
    inventory: ValkeyInventory
    ledger: PostgresLedger
    sale: Sale
    nodes: tuple[Namespace, ...]
    counter: str
    backoffice: str

    async def stream(self) -> Stream:
        """Buyers at work: everything has been seen to work, in every bucket, from the order to the payment."""
        stream = Stream(self.counter, self.backoffice)
        stream.start()
        began_s = CLOCK.monotonic_s()
        await until_all_buckets(stream.orders, began_s, STARTED_S)
        await until_all_buckets(stream.payments, began_s, STARTED_S)
        async with CLOCK.timeout(STARTED_S):
            while len(await self.ledger.orders(SALE)) < len(stream.orders) // 2:
                await CLOCK.sleep(0.1)
        return stream

    async def proof(self, stream: Stream) -> "Proof":
        """What became of all that was acknowledged. Waits for the ledger to have what the journal has."""
        async with CLOCK.timeout(STARTED_S):
            while True:
                # An idle connection to a server that was lost finds out at its next call.
                with suppress(InventoryError, LedgerError):
                    report = await audit(self.inventory, self.ledger, SALE, CLOCK, STARTED_S)
                    orders = await self.ledger.orders(SALE)
                    break
                await CLOCK.sleep(PAUSE_S)
        kept = compare_acknowledged(orders, [one.promise for one in stream.orders])
        paid = {order.reservation.order_id for order in orders if order.state is OrderState.PAID}
        unpaid = [one.order_id for one in stream.payments if one.order_id not in paid]
        return Proof(report, kept, unpaid)

    async def gather_primaries(self, zone: int = 0) -> None:
        """Bring every primary of Valkey into a zone; PostgreSQL's is where it is."""
        for node in self.cluster.in_zone(zone):
            server = Server((node.host, node.port), CLOCK)
            try:
                said = await server.said()
                if said is not None and said.me.primary:
                    await server.do("CLUSTER", "FAILOVER")
                async with CLOCK.timeout(10.0):
                    while said is None or said.me.primary:
                        await CLOCK.sleep(0.05)
                        said = await server.said()
            finally:
                await server.close()
        await self.cluster.until_sound()

    def lose(self, zone: int, how: How, parts: frozenset[Part] = BOTH) -> None:
        """At once, and not told to anybody but the machinery that would bring processes back on the spot."""
        if how is How.CUT:
            self.nodes[zone].cut()
            return
        self.group.keeper.away.add(ZONES[zone])
        pids = [node.child.pid for node in self.cluster.in_zone(zone)] if Part.VALKEY in parts else []
        if Part.POSTGRES in parts:
            pids += self.group.members[ZONES[zone]].engine.processes()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if how is How.KILL else signal.SIGSTOP)

    async def give_back(self, zone: int, how: How, parts: frozenset[Part] = BOTH) -> None:
        """The zone is there again; its engines find their places by themselves."""
        self.group.keeper.away.discard(ZONES[zone])
        if how is How.CUT:
            self.nodes[zone].heal()
        elif Part.VALKEY in parts:
            for node in self.cluster.in_zone(zone):
                if how is How.KILL:
                    await node.child.wait(CLOCK, 5.0)
                    await node.restart()
                else:
                    node.child.signal(signal.SIGCONT)
        await self.cluster.until_sound()
        await self.group.until_sound()


@asynccontextmanager
async def zone_world(*, cuttable: bool = False) -> AsyncIterator[ZoneWorld]:
    """Start it all. `cuttable`: each zone in a namespace; the calling thread moves into the network meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))
    folder.chmod(0o755)  # noqa: ASYNC240 - one call, before anything runs
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        network = PrivateNetwork() if cuttable else None
        if network is not None:
            stack.callback(network.close)
        nodes = tuple(network.add() for _ in ZONES) if network is not None else ()
        # A lost machine cannot be reached to end what runs there either.
        group = await start_postgres_group(CLOCK, folder / "pg", ZONES, nodes or None, kills=not cuttable)
        stack.push_async_callback(group.stop)
        cluster = await start_valkey_cluster(folder / "valkey", CLOCK, zones=nodes or None)
        stack.push_async_callback(cluster.stop)
        keeper = ValkeyKeeper(cluster.zones, CLOCK, replicas=2, acked=1, spread_after_s=NEVER_S)
        stack.push_async_callback(_ended, asyncio.create_task(keeper.run()))
        store = await ClusterStore.connect(cluster.addresses, CLOCK, prepare, replicas_acked=1, timeout_s=5.0)
        inventory = ValkeyInventory.on(store)
        stack.push_async_callback(inventory.close)
        await migrate(group.dsn)
        ledger = await PostgresLedger.connect(group.dsn, CLOCK, answer_s=5.0)
        stack.push_async_callback(ledger.close)
        sale = _sale()
        await ledger.publish(sale)
        await inventory.publish(sale)
        host = network.host if network is not None else "127.0.0.1"
        counter, backoffice = await _roles(stack, folder, cluster, group, host)
        yield ZoneWorld(cluster, group, keeper, inventory, ledger, sale, nodes, counter, backoffice)


def _sale() -> Sale:
    now_ms = CLOCK.now_ms()
    skus = (Sku(SKU, "Tea", PRICE_FEN, STOCK, spread=True),)
    return Sale(SALE, "Zones", skus, now_ms - 1000, now_ms + 3_600_000, 600_000, buckets=BUCKETS)


async def _roles(
    stack: AsyncExitStack, folder: Path, cluster: EmbeddedValkeyCluster, group: EmbeddedPostgresGroup, host: str
) -> tuple[str, str]:
    """Start counter, recorder and back office; the addresses of the two that listen."""
    folders = Folders(folder / "out", folder / "run")
    (folders.out / "logs").mkdir(parents=True)
    folders.run.mkdir()
    settings = RoleSettings(
        inventory=",".join(f"{host}:{port}" for host, port in cluster.addresses),
        ledger_dsn=group.dsn,
        token_master=_MASTER.hex(),
        webhook_secret=_SECRET.hex(),
        counter=CounterSettings(buyer_rate_max=1000.0, buyer_burst_max=1000),
        rate_max=None,
        bind_host=host,
        replicas_acked=1,
    )
    path = settings_file(folders, "settings", settings)
    urls = []
    for name in ("counter", "backoffice", "recorder"):
        announce = folders.run / f"{name}.port"
        arguments = {"counter": ["--replica-id", "c1"]}.get(name, [])
        arguments += [] if name == "recorder" else ["--announce", str(announce)]
        supervisor = Supervisor(name, starts(role(folders, name, path, *arguments)), CLOCK)
        await supervisor.start()
        stack.push_async_callback(supervisor.stop, 5.0)
        if name != "recorder":
            urls.append(f"http://{host}:{await read_announced_port(supervisor.child, announce, CLOCK)}")
    return urls[0], urls[1]


async def _ended(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until_all_buckets(done: list[Done], since_s: float, seconds: float) -> float:
    """Seconds from `since_s` until something that was begun afterwards had been acknowledged in every bucket."""
    until_s = since_s + seconds
    while True:
        first: dict[int, float] = {}
        for one in done:
            if one.began_s >= since_s:
                first.setdefault(one.bucket, one.ended_s - since_s)
        if len(first) == BUCKETS:
            return max(first.values())
        if CLOCK.monotonic_s() > until_s:
            raise TimeoutError(f"after {seconds:g} s {len(first)} of {BUCKETS} buckets had sold again")
        await CLOCK.sleep(0.05)

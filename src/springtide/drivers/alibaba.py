"""The cloud port on Alibaba Cloud: ECS machines on demand and spot, and ECI container groups, in one list.

Machines carry tags: of the installation, of the order, of the zone. What is not tagged with this installation is never
touched. Nodes are looked at when they are asked for, at most every few seconds, and only those that may have changed.
"""

import contextlib
from collections.abc import Sequence

import msgspec

from springtide.drivers import alibaba_eci, alibaba_ecs
from springtide.drivers.alibaba_calls import AlibabaCalls
from springtide.drivers.alibaba_catalog import AlibabaCatalog
from springtide.drivers.alibaba_fleet import AlibabaFleet, gather
from springtide.drivers.alibaba_nodes import NodeTable
from springtide.drivers.alibaba_purchase import Purchase, Purchases, too_few
from springtide.drivers.alibaba_settings import CREATED_INSTANCES, AccessKeys, AlibabaSettings, MachineType
from springtide.drivers.alibaba_times import moment_ms, release_time
from springtide.errors import CloudError, CloudRefused
from springtide.model import Market, Node, NodeOrder, NodeState, Offer, Quota
from springtide.ports import Clock

TOKEN_MAX = 128
"""An order's token is a tag value: at most so many characters (docs of TagResources)."""


class AlibabaCloud:
    """`ports.Cloud` on one account in one region.

    Repeating an order is safe: each batch has a client token made of the order's, which the cloud takes once.
    """

    def __init__(self, settings: AlibabaSettings, clock: Clock, keys: AccessKeys | None = None) -> None:
        """Connect to nothing yet. Without keys, the SDK's chain finds them: environment, profile files, a role."""
        self._settings = settings
        self._clock = clock
        self.calls = AlibabaCalls(settings, clock, keys)
        """What was sent, and how often the cloud throttled."""
        self._catalog = AlibabaCatalog(self.calls, settings, clock)
        self._table = NodeTable(settings)
        self._fleet = AlibabaFleet(self.calls, self._table, settings, clock)
        self._purchases = Purchases()

    async def rent(self, order: NodeOrder) -> list[Node]:
        """Rent up to `order.count` nodes in batches; at least `order.count_min`, or none."""
        purchase = self._purchases.of(order)
        machine = self._machine_of(order)
        if purchase is None:
            await self._fleet.list_before()
            sizes = [1] * order.count if order.market is Market.ECI else alibaba_ecs.batches(order.count)
            purchase = self._purchases.of(order) or self._purchases.begin(order, sizes)
        async with purchase.buying:
            if not purchase.is_over:
                await self._buy(purchase, machine)
        return [self._priced(self._table.nodes[name]) for name in purchase.node_ids if name in self._table.nodes]

    async def nodes(self) -> list[Node]:
        """All rented nodes of this installation, as they were at most a poll's time ago."""
        await self._fleet.refresh()
        return [self._priced(node) for node in self._table.nodes.values()]

    async def release(self, node_ids: Sequence[str]) -> None:
        """Give nodes back, in batches. Unknown ids, and those of others, are ignored."""
        ours = await self._fleet.ours(node_ids)
        groups = [name for name in ours if name.startswith(alibaba_eci.ID_PREFIX)]
        machines = [name for name in ours if not name.startswith(alibaba_eci.ID_PREFIX)]
        jobs = [self._fleet.delete_instances(page) for page in alibaba_ecs.pages(machines)]
        jobs += [self._fleet.delete_group(name) for name in groups]
        await gather(jobs, self._settings.batches_at_once)

    async def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """Move the end of machines, one call each; 0: never. Unknown ids are ignored.

        Raises CloudRefused for container groups, after the machines: the end of a group is set when it is created.
        """
        ours = await self._fleet.ours(node_ids)
        groups = [name for name in ours if name.startswith(alibaba_eci.ID_PREFIX)]

        async def move(name: str) -> None:
            query = {"InstanceId": name}
            if release_at_ms:
                query["AutoReleaseTime"] = release_time(release_at_ms)
            await self.calls.ecs("ModifyInstanceAutoReleaseTime", query)
            self._table.keep_until(name, release_at_ms)

        moves = [move(name) for name in ours if not name.startswith(alibaba_eci.ID_PREFIX)]
        await gather(moves, self._settings.batches_at_once)
        if groups:
            raise CloudRefused(f"the end of {len(groups)} container groups cannot be moved; rent new ones in time")

    async def offers(self) -> list[Offer]:
        """The configured types by zone and market, with the level of their stock and their price."""
        return await self._catalog.offers()

    async def quotas(self) -> list[Quota]:
        """The account's limits in cores, for ECS on demand and spot."""
        return await self._catalog.quotas()

    async def cost_fen(self, now_ms: int) -> float:
        """What the nodes cost that this process has seen, from their creation on. Nothing is asked of the cloud."""
        return self._table.cost_fen(now_ms)

    async def close(self) -> None:
        """Close connections; what is rented stays rented."""
        self.calls.close()

    async def _buy(self, purchase: Purchase, machine: MachineType) -> None:
        order = purchase.order
        await self._catalog.learn_price(machine.instance_type, order.market)

        async def send(batch: int, size: int) -> Sequence[str]:
            if order.market is Market.ECI:
                return await self._create_group(order, machine, batch)
            return await self._run_instances(order, machine, batch, size)

        try:
            await purchase.carry_out(send, self._settings.batches_at_once)
        except CloudError:
            if not purchase.node_ids:
                self._purchases.forget(purchase)
            raise
        bought = purchase.node_ids
        if len(bought) < order.count_min:
            self._purchases.forget(purchase)
            with contextlib.suppress(CloudError):  # what cannot be given back now is listed, and given back later
                await self.release(bought)
            raise too_few(order, len(bought))

    async def _run_instances(self, order: NodeOrder, machine: MachineType, batch: int, size: int) -> Sequence[str]:
        query = alibaba_ecs.run_instances(self._settings, order, machine.instance_type, batch, size)
        await self.calls.rates.take(CREATED_INSTANCES, size)
        answer = await self.calls.ecs("RunInstances", query)
        ids = (answer.get("InstanceIdSets") or {}).get("InstanceIdSet") or []
        self._adopt(order, machine, ids)
        return ids

    async def _create_group(self, order: NodeOrder, machine: MachineType, number: int) -> Sequence[str]:
        assert self._settings.eci is not None  # noqa: S101 - _machine_of has seen to it
        now_ms = self._clock.now_ms()
        query = alibaba_eci.create_group(self._settings, self._settings.eci, order, machine, number, now_ms)
        name = await self._fleet.create_group(query)
        self._adopt(order, machine, [name] if name else [])
        return [name] if name else []

    def _adopt(self, order: NodeOrder, machine: MachineType, ids: Sequence[str]) -> None:
        """New nodes, which count from now on; those of an order that was sent before were listed, if they exist."""
        now_ms = self._clock.now_ms()
        self._table.order(
            Node(
                node_id=node_id,
                zone=order.zone,
                state=NodeState.BOOTING,
                cores=machine.cores,
                client_token=order.client_token,
                since_ms=now_ms,
                memory_mb=machine.memory_mb,
                instance_type=machine.instance_type,
                market=order.market,
                price_fen_per_h=self._catalog.known_price(order.zone, machine.instance_type, order.market),
                rented_ms=now_ms,
                release_at_ms=moment_ms(release_time(order.release_at_ms)) if order.release_at_ms else 0,
            )
            for node_id in self._fleet.not_gone(ids)
        )

    def _machine_of(self, order: NodeOrder) -> MachineType:
        """The configured type of an order. Raises CloudRefused for what this installation does not rent."""
        zone = self._settings.zones.get(order.zone)
        if zone is None:
            raise CloudRefused(f"zone {order.zone} is not configured; there are {', '.join(self._settings.zones)}")
        if not 1 <= order.count_min <= order.count:
            raise CloudRefused(f"{order.count_min} to {order.count} nodes cannot be rented; ask for at least one")
        if not 1 <= len(order.client_token) <= TOKEN_MAX:
            raise CloudRefused(f"a token has 1 to {TOKEN_MAX} characters; give the order another")
        machine = self._settings.type_of(order.instance_type or zone.instance_type)
        if machine is None or order.market not in machine.markets:
            raise CloudRefused(f"{order.offer_key} is not configured for rent; add the type, or take one of the offers")
        if order.market is Market.ECI and self._settings.eci is None:
            raise CloudRefused("container groups are not configured; give them an image")
        return machine

    def _priced(self, node: Node) -> Node:
        """A node that was listed has no price of its own: it costs what its type does."""
        if node.price_fen_per_h:
            return node
        price = self._catalog.known_price(node.zone, node.instance_type, node.market)
        priced = msgspec.structs.replace(node, price_fen_per_h=price)
        if price:
            self._table.nodes[node.node_id] = priced
        return priced

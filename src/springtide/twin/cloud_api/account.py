"""What the API knows of the account beyond the market: names and tags of machines, and vSwitches."""

import fnmatch
from collections.abc import Iterable

import msgspec

from springtide.model import Market as Channel
from springtide.model import Node, NodeState
from springtide.twin.cloud_api.answers import NOT_FOUND, ApiError
from springtide.twin.market import Market

PENDING_SHARE, STARTING_SHARE = 0.1, 1.0
"""An instance is Pending for the first tenth of its boot, and then Starting."""


class ServedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the API is told. Each zone has a vSwitch `vsw-ZONE` with so many addresses (a /18, less four).

    `release_min_ms` is how far ahead an automatic release has to be at least (RunInstances: half an hour).
    """

    vswitch_addresses: int = 16_380
    release_min_ms: int = 1_800_000


class Details(msgspec.Struct, frozen=True):
    """What a purchase gave all of its machines."""

    vswitch: str
    image: str = ""
    security_group: str = ""
    strategy: str = "NoSpot"
    price_limit: str = ""
    deletion_protection: bool = False
    charge_type: str = "PostPaid"


class Machine(msgspec.Struct):
    """What the API knows of one machine."""

    details: Details
    name: str
    host_name: str
    tags: dict[str, str]


class Account:
    """One account in one region: the market, and what calls have said about its machines."""

    def __init__(self, market: Market, settings: ServedSettings) -> None:
        """Nothing has been said."""
        self.market = market
        self.settings = settings
        self.machines: dict[str, Machine] = {}

    @property
    def region(self) -> str:
        """The region that is served."""
        return self.market.settings.region

    @property
    def now_ms(self) -> int:
        """The cloud's clock."""
        return self.market.kernel.now_ms

    def remember(self, nodes: Iterable[Node], machines: Iterable[Machine]) -> None:
        """Keep what was said about new machines, and forget what is gone, once that is more than what is there."""
        self.machines.update((node.node_id, machine) for node, machine in zip(nodes, machines, strict=True))
        if len(self.machines) > 2 * len(self.market.live) + 1_000:
            self.machines = {name: kept for name, kept in self.machines.items() if name in self.market.live}

    def nodes(self, *, containers: bool) -> list[Node]:
        """Container groups, or instances, in the order in which they came."""
        return [node for node in self.market.nodes() if (node.market is Channel.ECI) is containers]

    def machine(self, node: Node) -> Machine:
        """What is known of a machine; one that was not rented through the API is unnamed."""
        return self.machines.get(node.node_id) or Machine(Details(vswitch_of(node.zone)), node.node_id, "", {})

    def zone_of_vswitch(self, vswitch: str) -> str:
        """The zone that a vSwitch is in. Raises InvalidVSwitchId.NotFound."""
        zone = vswitch.removeprefix("vsw-")
        if zone not in self.zones() or zone == vswitch:
            raise ApiError("InvalidVSwitchId.NotFound", f"The vSwitch {vswitch} does not exist.", NOT_FOUND)
        return zone

    def zones(self) -> list[str]:
        """All zones that have offers."""
        return list(dict.fromkeys(pool.offer.zone for pool in self.market.pools.values()))

    def check_addresses(self, zone: str, count: int) -> None:
        """Refuse what the zone's vSwitch has no addresses for. Raises InvalidVSwitchId.IpNotEnough."""
        used = sum(node.zone == zone for node in self.market.live.values())
        if used + count > self.settings.vswitch_addresses:
            raise ApiError(
                "InvalidVSwitchId.IpNotEnough", f"The vSwitch {vswitch_of(zone)} has too few IP addresses left."
            )

    def progress(self, node: Node) -> float:
        """How far a boot is: 0 to 1; 1 when it is done."""
        ready_ms = self.market.ready_ms.get(node.node_id)
        if node.state is not NodeState.BOOTING or ready_ms is None or ready_ms <= node.rented_ms:
            return 1.0
        return (self.now_ms - node.rented_ms) / (ready_ms - node.rented_ms)


def vswitch_of(zone: str) -> str:
    """The vSwitch of a zone."""
    return f"vsw-{zone}"


def matches(machine: Machine, name: str, tags: dict[str, str]) -> bool:
    """Whether a machine has this name (`*` stands for anything) and all of these tags (no value: any)."""
    if name and not fnmatch.fnmatchcase(machine.name, name):
        return False
    return all(key in machine.tags and value in {"", machine.tags[key]} for key, value in tags.items())


def after(nodes: list[Node], token: str) -> list[Node]:
    """The nodes that come after a page; the token is the last node id of it, and ids are in order.

    Raises InvalidParameter for a token that no page ended with.
    """
    if not token:
        return nodes
    if not token.startswith(("i-", "eci-")):
        raise ApiError("InvalidParameter", "The parameter NextToken is not one of an earlier answer.")
    return [node for node in nodes if node.node_id > token]

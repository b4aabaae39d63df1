"""What the leading control loop says of nodes, offers and money: a value beside the status, kept compressed."""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import msgspec

from springtide.errors import FleetStateError
from springtide.model import CalendarEvent, Node, Offer, Purchase, Quota, Replica, Zone
from springtide.ports import FleetState

CLOUD = "cloud"
"""The name that the value is remembered under."""

TELL_MS = 5_000
"""How often it is told."""

BYTES_MAX = 64_000_000
"""The most that is unpacked: 3,125 nodes and 2,400 offers are about 1 MB."""


class CloudStatus(msgspec.Struct, frozen=True):
    """The nodes of IDC and cloud, and what there is to rent, as the leader knows them.

    `at_ms` is when the nodes were listed. `replicas` counts by node and then by service, `owners` is the service that
    rented each node. `cost_fen` is what all rented nodes have cost until then, `ended_fen` the part of those that are
    gone. `events` are the announced ones, `purchases` what plans of events have scheduled.
    """

    at_ms: int
    nodes: tuple[Node, ...] = ()
    replicas: dict[str, dict[str, int]] = {}
    owners: dict[str, str] = {}
    offers: tuple[Offer, ...] = ()
    quotas: tuple[Quota, ...] = ()
    cost_fen: float = 0.0
    ended_fen: float = 0.0
    events: tuple[CalendarEvent, ...] = ()
    purchases: tuple[Purchase, ...] = ()


_DECODER = msgspec.msgpack.Decoder(CloudStatus)


class CostBook:
    """What rented nodes cost, from the lists of them alone, so that it goes on over loops and drivers.

    Clouds bill by the started second (ECS and ECI do). A node that came and went between two lists is not in it.
    """

    def __init__(self, zones: Sequence[Zone]) -> None:
        """Nothing has been spent. The zones' prices are those of nodes that have none of their own."""
        self._prices = {zone.name: float(zone.price_fen_per_node_h) for zone in zones}
        self._seen: dict[str, tuple[Node, int]] = {}
        self._ended_fen = 0.0

    @property
    def ended_fen(self) -> float:
        """Of the nodes that are gone."""
        return self._ended_fen

    def restore(self, told: CloudStatus) -> None:
        """Go on where another loop was."""
        self._ended_fen = told.ended_fen
        self._seen = {node.node_id: (node, told.at_ms) for node in told.nodes if node.client_token}

    def count(self, nodes: Iterable[Node], now_ms: int) -> float:
        """Take the nodes of now; what has been spent until now. Those that are missing ended when last seen."""
        listed = {node.node_id: (node, now_ms) for node in nodes if node.client_token}
        for name, (node, seen_ms) in self._seen.items():
            if name not in listed:
                self._ended_fen += self._fen(node, seen_ms)
        self._seen = listed
        return self._ended_fen + sum(self._fen(node, now_ms) for node, _ in listed.values())

    def _fen(self, node: Node, until_ms: int) -> float:
        price = node.price_fen_per_h or self._prices.get(node.zone, 0.0)
        return price * -(-max(0, until_ms - (node.rented_ms or node.since_ms)) // 1000) / 3600


def replicas_by_node(replicas: Iterable[Replica]) -> dict[str, dict[str, int]]:
    """How many replicas of each service each node has."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for replica in replicas:
        found[replica.node_id][replica.service] += 1
    return {node: dict(services) for node, services in found.items()}


def encode_cloud(status: CloudStatus) -> bytes:
    """The value to remember; level 1 packs 1 MB in some 15 ms."""
    return zlib.compress(msgspec.msgpack.encode(status), level=1)


def decode_cloud(value: bytes | None) -> CloudStatus | None:
    """The value as it was told; None when none was. Raises FleetStateError."""
    if not value:
        return None
    try:
        return _DECODER.decode(zlib.decompressobj().decompress(value, BYTES_MAX))
    except (zlib.error, msgspec.DecodeError) as error:
        raise FleetStateError(f"what is said of the cloud cannot be read ({error}); let a newer loop lead") from error


async def read_cloud(state: FleetState) -> CloudStatus | None:
    """The last value; None when no loop has told one. Raises FleetStateError."""
    return decode_cloud(await state.recall(CLOUD))

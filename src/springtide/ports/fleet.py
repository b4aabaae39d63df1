"""What the control loop looks at and acts on: balancers, runtimes, clouds, image caches, and its own state."""

from collections.abc import Collection, Sequence
from typing import Protocol

from springtide.model import (
    CachedImage,
    Endpoint,
    EngineImage,
    ImageTransfer,
    Intent,
    Leadership,
    Node,
    NodeOrder,
    Offer,
    Purchase,
    Quota,
    Replica,
    ReplicaSpec,
    ScaleOverride,
    ServiceSpec,
    ServiceWish,
    TrafficSample,
    Wishes,
    ZoneMode,
)


class Balancer(Protocol):
    """The load balancer in front of one service's replicas. Raises BalancerError; what was set before stays in force.

    By itself it checks each replica, sends nothing to one that is ill, takes it back when it is well, gives a new one
    its share gradually, and keeps a bounded number of requests waiting.
    """

    async def set_endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """Send traffic to exactly these from now on, by weight; no open request is cut."""

    async def sample(self, now_ms: int) -> TrafficSample:
        """The figures since the last sample."""

    async def healthy(self) -> frozenset[str]:
        """The ids of the replicas that the balancer itself finds healthy."""


class Runtime(Protocol):
    """What runs replicas on the nodes of some zones. Raises ReplicaError.

    Replicas outlive the process that uses this port: the next one finds them with `list`.
    """

    async def define(self, service: ServiceSpec) -> None:
        """Make a revision of a service known, for `start`; again with the same revision does nothing."""

    async def start(self, spec: ReplicaSpec) -> None:
        """Begin to start a replica; a second call with the same id does nothing. `list` tells when it is ready.

        Raises ReplicaError when the service's revision has not been defined.
        """

    async def drain(self, replica_id: str) -> None:
        """Tell the replica that its traffic ends, while it finishes what it has. Unknown ids are ignored."""

    async def stop(self, replica_id: str) -> None:
        """End a replica: asked first, then killed. Unknown ids are ignored."""

    async def list(self) -> list[Replica]:
        """All replicas that were started and not stopped, the failed ones included."""

    async def logs(self, replica_id: str, lines: int) -> Sequence[str]:
        """The last lines a replica wrote, oldest first; empty for unknown ids."""

    async def close(self) -> None:
        """End everything this runtime started."""


class Sensor(Protocol):
    """One figure from outside, for scaling. Raises SensorError."""

    async def read(self) -> float:
        """The figure now."""


class ImageCache(Protocol):
    """What delivers images to the nodes of one zone without the line to the origin. Raises ImageError.

    References are `NAME:TAG`, as the origin has them.
    """

    async def warm(self, reference: str) -> ImageTransfer:
        """Copy an image over the line, once: layers that are here already, or being copied, do not cross again.

        Repeating it does nothing more; a copy that was broken off goes on with the layers that are missing.
        """

    async def reference(self, reference: str) -> str:
        """What a node of the zone pulls to get this image: the cache's own address and the digest."""

    async def images(self) -> list[CachedImage]:
        """What the cache holds."""

    async def collect(self, keep: Collection[str]) -> int:
        """Delete all images but these references; the bytes that became free. What is being copied stays.

        So does an image that is kept under another reference.
        """

    async def close(self) -> None:
        """Close connections; the cache goes on."""


class ImageEngine(Protocol):
    """One engine's own store of images. Raises ImageError."""

    async def ensure(self, reference: str) -> str:
        """Make sure that the engine has the image; what to run. Nothing is asked of anybody when it is there."""

    async def images(self) -> list[EngineImage]:
        """What the engine has, the newest first. Images without a name are not listed."""

    async def remove(self, references: Collection[str]) -> int:
        """Remove images; how many are gone. Unknown ones are ignored, and those stay that a container is made of."""

    async def close(self) -> None:
        """Close connections; the engine goes on."""


class FleetState(Protocol):
    """What control loops share and must not forget: who leads, what was begun, what operators want.

    Raises FleetStateError. Every write of a leader carries its term; Deposed when another term has begun.
    """

    async def lead(self, holder: str, lease_ms: int) -> Leadership:
        """Take the lead if nobody has it, or prolong one's own; who leads now, and until when by the store's clock."""

    async def resign(self, holder: str, term: int) -> None:
        """Give the lead up, so that another may have it at once. Not being the leader is no error."""

    async def begin(self, term: int, intents: Sequence[Intent]) -> None:
        """Write down what is about to be done, all or nothing, before any of it is done. Raises Deposed."""

    async def end(self, term: int, intent_ids: Sequence[str]) -> None:
        """Strike what is done. Unknown ids are ignored. Raises Deposed."""

    async def open_intents(self) -> list[Intent]:
        """What was begun and not struck, oldest first: a new leader sends it again."""

    async def wishes(self) -> Wishes:
        """What the operators want."""

    async def wish_service(self, name: str, wish: ServiceWish | None) -> None:
        """Want a service as it is given, or (None) no longer. The revision it had becomes `previous`."""

    async def wish_mode(self, zone: str, mode: ZoneMode) -> None:
        """Want a zone open, cordoned or drained."""

    async def wish_node(self, node_id: str, *, cordoned: bool) -> None:
        """Want nothing new on a node, or use it again."""

    async def wish_purchases(self, event: str, purchases: Sequence[Purchase] | None) -> None:
        """Want an event's machines bought, each when its `order_ms` comes, or (None) no longer; replaces what was."""

    async def wish_scale(self, service: str, scale: ScaleOverride | None) -> None:
        """Bound a service's replicas, or (None) leave them to its own bounds again."""

    async def remember(self, term: int, name: str, value: bytes) -> None:
        """Keep a value of the leader's under a name (at most 1 MB), for status pages and the next leader."""

    async def recall(self, name: str) -> bytes | None:
        """The value kept under a name."""

    async def close(self) -> None:
        """Close connections."""


class Cloud(Protocol):
    """What rents machines, in several zones.

    Raises CloudUnavailable (repeat with the same token), CloudThrottled (the same, after `retry_after_s`),
    CloudOutOfStock, CloudQuotaExceeded, CloudRefused (the account or the order itself: a person has to look).
    """

    async def rent(self, order: NodeOrder) -> list[Node]:
        """Rent up to `order.count` nodes, at least `order.count_min`; fewer than the count is a success.

        The same order again returns the nodes of the first call, as far as they are not released. Raises CloudRefused
        for a token that was used for another order.
        """

    async def nodes(self) -> list[Node]:
        """All rented nodes that still cost money: those of this installation, by their tag."""

    async def release(self, node_ids: Sequence[str]) -> None:
        """Give nodes back, traffic and replicas having left them. Unknown ids are ignored.

        A failure may leave some of them released: the call can be repeated.
        """

    async def keep_until(self, node_ids: Sequence[str], release_at_ms: int) -> None:
        """Move the moment at which the cloud takes these nodes back by itself; 0: never. Unknown ids are ignored."""

    async def offers(self) -> list[Offer]:
        """What can be rented now, at what price; empty for a cloud that has one machine a zone."""

    async def quotas(self) -> list[Quota]:
        """The account's limits and what is used of them; empty where there are none to ask for."""

    async def cost_fen(self, now_ms: int) -> float:
        """What has been spent on nodes until now."""

    async def close(self) -> None:
        """Close connections; what is rented stays rented."""

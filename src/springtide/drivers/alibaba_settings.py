"""What the Alibaba Cloud driver has to know: region, zones, what to launch, what is for rent, how often to ask."""

import msgspec

from springtide.drivers.api_rates import Rate
from springtide.model import Market

USER_DATA_BYTES_MAX = 32 * 1024
"""ECS: `UserData` before Base64 (docs of RunInstances)."""

CREATED_INSTANCES = "created instances"
"""The bucket that counts machines instead of calls: an account creates at most 5,000 ECS instances a minute.

https://help.aliyun.com/zh/ecs/developer-reference/api-throttling
"""

RATES: dict[str, Rate] = {
    CREATED_INSTANCES: Rate(3_500, 24),
    "CreateContainerGroup": Rate(95, 19),
    "DeleteContainerGroup": Rate(95, 19),
}
"""What the driver allows itself, a little below the documented limits.

Those are 5,000 created instances a minute, and for container groups 100 calls at once and 20 a second after that.
"""

USUAL_RATE = Rate(150, 8)
"""For every other API: 630 calls in any minute. Their limits are shown in an account's Quota Center only (?)."""


BOOT_MS = {
    Market.ON_DEMAND: (60_000, 180_000),
    Market.SPOT: (60_000, 180_000),
    Market.ECI: (20_000, 60_000),
}
"""From the order until a machine can run a replica: as half of them do it, and 99 of 100. To be measured per image."""


class AlibabaZone(msgspec.Struct, frozen=True):
    """A zone of ours in the cloud: its `zone_id` there ("": it has the same name), and where machines come to stand.

    `instance_type` is the one machine of the zone, for orders that name none. `user_data` is what cloud-init does on a
    new machine; "": it is generated (`alibaba_boot.py`), with `image_cache` (HOST:PORT) and an engine that listens on
    `engine_port` of the private address (0: it does not).
    """

    vswitch_id: str
    zone_id: str = ""
    security_group_id: str = ""
    instance_type: str = ""
    user_data: str = ""
    image_cache: str = ""
    engine_port: int = 0


class MachineType(msgspec.Struct, frozen=True):
    """A type that may be rented, in these markets.

    A `price_fen_per_h` of 0 is asked of the cloud. The name of a type of the market ECI is ours: a container group of
    this size.
    """

    instance_type: str
    cores: int
    memory_mb: int
    arch: str = "amd64"
    markets: tuple[Market, ...] = (Market.ON_DEMAND, Market.SPOT)
    price_fen_per_h: float = 0.0


class EciSettings(msgspec.Struct, frozen=True):
    """What a container group runs: one container that takes the whole group."""

    image: str
    command: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    auto_match_image_cache: bool = True


FIRST_LOOK = 0.8
"""A new machine is looked at first when so much of the usual boot has passed, where that is known."""

SLOW_BOOT = 1.5
"""The slowest machines of a hundred are taken to need so many times the `boot_s` of their zone."""


class AlibabaSettings(msgspec.Struct, frozen=True):
    """One installation in one region. It holds no secret.

    `installation` is the tag that tells this installation's machines from all others of the account. Endpoints of ""
    are the region's own. `zones` are by our own name. Times are in seconds: the first look at a new node is after
    `first_look_s`, then there are `poll_s` between two looks at nodes that boot and `settled_s` at those that run, and
    `list_s` between two lists of all that carry the tag. `call_s` is the longest that one call may take.
    `batches_at_once` bounds how many calls of one kind are under way.
    """

    region: str
    installation: str
    zones: dict[str, AlibabaZone]
    types: tuple[MachineType, ...]
    image_id: str = ""
    security_group_id: str = ""
    key_pair: str = ""
    ram_role: str = ""
    system_disk: str = "cloud_essd"
    system_disk_gib: int = 40
    launch_template_id: str = ""
    spot_protected_h: int = 1
    eci: EciSettings | None = None
    ecs_endpoint: str = ""
    eci_endpoint: str = ""
    protocol: str = "https"
    first_look_s: float = 10.0
    poll_s: float = 2.0
    settled_s: float = 30.0
    list_s: float = 60.0
    call_s: float = 15.0
    batches_at_once: int = 4
    boot_ms: dict[Market, tuple[int, int]] = msgspec.field(default_factory=BOOT_MS.copy)
    rates: dict[str, Rate] = {}

    def type_of(self, instance_type: str) -> MachineType | None:
        """The configured type of this name."""
        return next((each for each in self.types if each.instance_type == instance_type), None)

    def zone_id(self, zone: str) -> str:
        """What the cloud calls one of our zones."""
        return self.zones[zone].zone_id or zone

    def zone_named(self, zone_id: str) -> str:
        """Our name of a zone of the cloud; the cloud's own for one that is not configured."""
        return next((name for name in self.zones if self.zone_id(name) == zone_id), zone_id)


class AccessKeys:
    """An access key of the account, given by hand for a local endpoint. It never shows itself."""

    __slots__ = ("key_id", "secret", "security_token")

    def __init__(self, key_id: str, secret: str, security_token: str = "") -> None:
        """`security_token` is of a temporary key."""
        self.key_id = key_id
        self.secret = secret
        self.security_token = security_token

    def __repr__(self) -> str:
        """Nothing of the key."""
        return "AccessKeys(hidden)"

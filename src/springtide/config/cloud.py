"""What is rented and where: the account and what it may be used for, limits, and the lines that lead there."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from springtide.config.fields import NotNegative, Positive, Share
from springtide.model import FEN_PER_CNY, FleetPolicy, Line, Market, require_identifier

DriverName = Literal["local", "alibaba"]
ECI_CORES_MAX = 64
"""The most cores of one ECI group (Alibaba Cloud's documentation of CreateContainerGroup)."""

_MS_PER_H = 3_600_000
_LOOPBACK = ("127.", "localhost", "[::1]")

Markets = Annotated[tuple[Market, ...], Meta(min_length=1, max_length=3)]


class MachineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[cloud.types]]`: a type of machine that may be rented, or (market `eci`) a size of container group.

    A `price_cny_per_h` of 0 is asked of the cloud.
    """

    name: str
    cores: Annotated[int, Meta(ge=1, le=1_024)]
    memory_gb: Positive
    arch: Literal["amd64", "arm64"] = "amd64"
    markets: Markets = (Market.ON_DEMAND, Market.SPOT)
    price_cny_per_h: NotNegative = 0.0

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if Market.IDC in self.markets:
            msg = f'type {self.name}: "idc" is not rented; give "on_demand", "spot" or "eci"'
            raise ValueError(msg)
        if Market.ECI in self.markets:
            if len(self.markets) > 1:
                msg = f'type {self.name}: a container group is of the market "eci" alone; name its machines separately'
                raise ValueError(msg)
            if self.cores > ECI_CORES_MAX:
                msg = f"type {self.name}: a container group has at most {ECI_CORES_MAX} cores"
                raise ValueError(msg)
        elif not self.name.startswith("ecs."):
            msg = f"type {self.name!r} is no ECS type; they are named as in ecs.c7.xlarge"
            raise ValueError(msg)


class CloudSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[cloud]`: who rents out machines, which of them may be rented, for how long, and for how much.

    Endpoints of "" are the public ones of the region. `installation` is the tag by which what was rented is found
    again: another for each platform. Without `credentials` (a file) the SDK's standard chain is asked. `user_data` is a
    file that a new machine runs at its first start. Both are beside the TOML.
    """

    driver: DriverName = "local"
    region: str = "cn-beijing"
    installation: str = ""
    ecs_endpoint: str = ""
    eci_endpoint: str = ""
    protocol: Literal["https", "http"] = "https"
    credentials: str = ""
    image: str = ""
    security_group: str = ""
    key_pair: str = ""
    user_data: str = ""
    eci_image: str = ""
    types: Annotated[tuple[MachineSettings, ...], Meta(max_length=500)] = ()
    markets: Markets = (Market.ON_DEMAND,)
    release_after_h: Annotated[float, Meta(ge=1, le=26_280)] = 12.0
    spend_max_cny_per_h: NotNegative = 0.0
    zone_share_max: Annotated[float, Meta(gt=0, le=1)] = 1.0
    spot_share_max: Share = 0.0
    poll_s: Annotated[float, Meta(ge=0.2, le=60)] = 2.0
    sweep_every_s: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    sweep_grace_s: Annotated[float, Meta(ge=0, le=604_800)] = 1800.0
    sweep_release: bool = True

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        if self.installation:
            require_identifier("installation", self.installation)
        for wrong in self._mistakes():
            raise ValueError(wrong)

    def _mistakes(self) -> list[str]:
        wrong = []
        if Market.IDC in self.markets:
            wrong.append('markets: "idc" is not rented; give "on_demand", "spot" or "eci"')
        if Market.SPOT in self.markets and not self.spot_share_max:
            wrong.append('markets: "spot" is never rented with spot_share_max = 0; give the share that it may have')
        if Market.ECI in self.markets and not self.eci_image:
            wrong.append('markets: "eci" needs eci_image: what a container group runs')
        names = [machine.name for machine in self.types]
        wrong.extend(
            f"types: {name} stands twice" for name in sorted({name for name in names if names.count(name) > 1})
        )
        if self.protocol == "http" and not self.is_here:
            wrong.append(
                'protocol: "http" is for a cloud on this machine; give "https", or both endpoints as 127.0.0.1:PORT'
            )
        return wrong

    @property
    def is_here(self) -> bool:
        """Whether the cloud is on this machine: its machines are not real, and cost nothing."""
        endpoints = (self.ecs_endpoint, self.eci_endpoint)
        return self.driver == "local" or all(endpoint.startswith(_LOOPBACK) for endpoint in endpoints)

    def beside(self, folder: Path) -> "CloudSettings":
        """The same, with the files it names counted from this folder."""

        def absolute(path: str) -> str:
            return str((folder / path).absolute()) if path else ""

        return msgspec.structs.replace(self, credentials=absolute(self.credentials), user_data=absolute(self.user_data))

    def policy(self, base: FleetPolicy) -> FleetPolicy:
        """The policy with the limits of what is rented."""
        return msgspec.structs.replace(
            base,
            release_after_ms=round(self.release_after_h * _MS_PER_H),
            spend_max_fen_per_h=self.spend_max_cny_per_h * FEN_PER_CNY,
            zone_share_max=self.zone_share_max,
            spot_share_max=self.spot_share_max,
        )


class LineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[lines]]`: a dedicated line between the data centre and these zones of the cloud (none: all).

    `query` is asked of the Prometheus at `url`: which share of the line is taken (0 to 1).
    """

    name: str
    bandwidth_gbit: Positive
    latency_ms: NotNegative = 0.0
    share_max: Annotated[float, Meta(gt=0, le=1)] = 0.8
    zones: Annotated[tuple[str, ...], Meta(max_length=100)] = ()
    url: str = ""
    query: str = ""

    def __post_init__(self) -> None:
        """Check what the types do not say."""
        require_identifier("name", self.name)
        asks = self.url.startswith(("http://", "https://")) and self.query
        if (self.url or self.query) and not asks:
            msg = f"line {self.name}: its load is read with url (http://…) and query: give both, or leave both out"
            raise ValueError(msg)

    def model(self) -> Line:
        """The line as the decisions see it."""
        return Line(self.name, self.bandwidth_gbit * 1e9, self.latency_ms, self.share_max, self.zones)

"""Which cloud a configuration means, opened: nodes on paper on this machine, or Alibaba Cloud."""

import configparser
from pathlib import Path

import msgspec

from springtide.config import CloudSettings, Config
from springtide.drivers.alibaba_settings import (
    FIRST_LOOK,
    SLOW_BOOT,
    AccessKeys,
    AlibabaSettings,
    AlibabaZone,
    EciSettings,
    MachineType,
)
from springtide.drivers.localcloud import LocalCloud
from springtide.drivers.system import SystemClock, chance
from springtide.errors import ConfigError
from springtide.model import FEN_PER_CNY, Market, ZoneKind
from springtide.ports import Cloud

LOCAL_SEED = 7
LOCAL_FILE = "cloud.json"
PROFILE = "default"
"""Of a credentials file: the one that the SDK takes too."""

_MB_PER_GB = 1024


def open_cloud(config: Config, clock: SystemClock, folder: Path) -> Cloud:
    """Open it. `folder` keeps what the cloud on this machine remembers. Raises CloudError and ConfigError."""
    if config.cloud.driver == "local":
        return LocalCloud(folder / LOCAL_FILE, clock, chance(LOCAL_SEED), config.fleet_zones())
    from springtide.drivers.alibaba import AlibabaCloud  # noqa: PLC0415 - the SDK takes half a second to import

    return AlibabaCloud(alibaba_settings(config), clock, keys=access_keys(config.cloud))


def open_for_replicas(config: Config, clock: SystemClock, folder: Path) -> Cloud:
    """As `open_cloud`, for a loop that rents. Raises ConfigError where machines would be paid for and stay idle."""
    if config.fleet.runtime == "process" and not config.cloud.is_here:
        msg = (
            'cloud.driver: with runtime = "process" in [fleet] all replicas run on this machine, and rented ones would '
            'be paid for in vain; give runtime = "docker", or driver = "local"'
        )
        raise ConfigError(msg)
    return open_cloud(config, clock, folder)


def alibaba_settings(config: Config) -> AlibabaSettings:
    """The account's side of a configuration. Raises ConfigError when the file of `user_data` cannot be read."""
    cloud = config.cloud
    types = tuple(
        MachineType(
            machine.name,
            machine.cores,
            round(machine.memory_gb * _MB_PER_GB),
            machine.arch,
            tuple(market for market in machine.markets if market in cloud.markets),
            machine.price_cny_per_h * FEN_PER_CNY,
        )
        for machine in cloud.types
        if set(machine.markets) & set(cloud.markets)
    )
    user_data = _read("cloud.user_data", cloud.user_data) if cloud.user_data else ""
    zones = {
        zone.name: AlibabaZone(
            zone.vswitch, zone.cloud_zone, user_data=user_data, instance_type=_usual_type(types, zone.cores_per_node)
        )
        for zone in config.zones
        if zone.kind is ZoneKind.CLOUD
    }
    boots = [round(zone.boot_s * 1000) for zone in config.zones if zone.kind is ZoneKind.CLOUD and zone.boot_s]
    settings = AlibabaSettings(
        region=cloud.region,
        installation=cloud.installation,
        zones=zones,
        types=types,
        image_id=cloud.image,
        security_group_id=cloud.security_group,
        key_pair=cloud.key_pair,
        eci=EciSettings(cloud.eci_image) if cloud.eci_image else None,
        ecs_endpoint=cloud.ecs_endpoint,
        eci_endpoint=cloud.eci_endpoint,
        protocol=cloud.protocol,
        poll_s=cloud.poll_s,
    )
    if boots:
        slowest = max(boots)
        boot_ms = {market: (slowest, round(slowest * SLOW_BOOT)) for market in settings.boot_ms}
        first_look_s = min(settings.first_look_s, FIRST_LOOK * min(boots) / 1000)
        settings = msgspec.structs.replace(settings, boot_ms=boot_ms, first_look_s=first_look_s)
    return settings


def _usual_type(types: tuple[MachineType, ...], cores: int) -> str:
    """What an order without a type takes: the type that has the zone's cores, or else the first machine."""
    machines = [one for one in types if Market.ON_DEMAND in one.markets]
    exact = [one.instance_type for one in machines if one.cores == cores]
    return next(iter(exact), machines[0].instance_type if machines else "")


def access_keys(cloud: CloudSettings) -> AccessKeys | None:
    """The keys of the file that is named; None leaves them to the SDK's standard chain. Raises ConfigError."""
    if not cloud.credentials:
        return None
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read_string(_read("cloud.credentials", cloud.credentials))
        profile = file[PROFILE]
        return AccessKeys(profile["access_key_id"], profile["access_key_secret"], profile.get("security_token", ""))
    except (KeyError, configparser.Error):
        msg = (
            f"cloud.credentials: {cloud.credentials} is no credentials file of the SDK: it needs [{PROFILE}] with "
            "access_key_id and access_key_secret"
        )
        raise ConfigError(msg) from None  # what is in the file is in no message


def _read(key: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{key}: {path} cannot be read: {error}"
        raise ConfigError(msg) from error

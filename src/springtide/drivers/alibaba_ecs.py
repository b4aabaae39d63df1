"""ECS in the API's words: what a batch of an order is sent as, and the nodes that an answer describes."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from springtide.drivers.alibaba_boot import docker_user_data, encoded
from springtide.drivers.alibaba_settings import AlibabaSettings
from springtide.drivers.alibaba_times import batch_token, moment_ms, release_time
from springtide.model import FEN_PER_CNY, Market, Node, NodeOrder, NodeState

BATCH_MAX = 100
"""Machines of one RunInstances, DeleteInstances or DescribeInstances call (docs of each)."""

INSTALLATION_TAG, ORDER_TAG, ZONE_TAG, TYPE_TAG = (
    "springtide",
    "springtide-order",
    "springtide-zone",
    "springtide-type",
)

NOTICE_MS = 300_000
"""A spot machine is told 5 minutes before it is taken (docs of RunInstances, `SpotDuration`)."""

_STATES = {
    "Pending": NodeState.BOOTING,
    "Starting": NodeState.BOOTING,
    "Running": NodeState.READY,
    "Stopping": NodeState.RELEASING,
    "Stopped": NodeState.RELEASING,
}


def batches(count: int) -> list[int]:
    """How many machines each call of an order asks for."""
    full, rest = divmod(count, BATCH_MAX)
    return [BATCH_MAX] * full + [rest] * (rest > 0)


def pages(ids: Sequence[str], size: int = BATCH_MAX) -> Iterator[Sequence[str]]:
    """Ids by as many as one call takes."""
    for begin in range(0, len(ids), size):
        yield ids[begin : begin + size]


def tags(settings: AlibabaSettings, order: NodeOrder, instance_type: str) -> list[dict[str, str]]:
    """What tells a machine's installation and purchase."""
    pairs = {
        INSTALLATION_TAG: settings.installation,
        ORDER_TAG: order.client_token,
        ZONE_TAG: order.zone,
        TYPE_TAG: instance_type,
    }
    return [{"Key": key, "Value": value} for key, value in pairs.items()]


def own_tag(settings: AlibabaSettings) -> list[dict[str, str]]:
    """The tag that all machines of this installation carry."""
    return [{"Key": INSTALLATION_TAG, "Value": settings.installation}]


def run_instances(
    settings: AlibabaSettings, order: NodeOrder, instance_type: str, batch: int, amount: int
) -> dict[str, Any]:
    """The parameters of RunInstances for one batch. Raises CloudRefused for user data that is too long.

    They are made of the order and the settings alone, so that a repetition is word for word the same.
    """
    zone = settings.zones[order.zone]
    user_data = zone.user_data or docker_user_data(order.zone, zone.image_cache, zone.engine_port)
    query: dict[str, Any] = {
        "Amount": amount,
        "MinAmount": min(amount, order.count_min) if batch == 0 else 1,
        "ClientToken": batch_token(order.client_token, batch),
        "InstanceType": instance_type,
        "InstanceChargeType": "PostPaid",
        "InstanceName": f"{settings.installation}-{order.zone}",
        "ZoneId": settings.zone_id(order.zone),
        "VSwitchId": zone.vswitch_id,
        "SecurityGroupId": zone.security_group_id or settings.security_group_id or None,
        "ImageId": settings.image_id or None,
        "LaunchTemplateId": settings.launch_template_id or None,
        "KeyPairName": settings.key_pair or None,
        "RamRoleName": settings.ram_role or None,
        "SystemDisk": {"Category": settings.system_disk, "Size": str(settings.system_disk_gib)},
        "HttpTokens": "required",
        "Tag": tags(settings, order, instance_type),
        "UserData": encoded(user_data),
        **_spot(settings, order),
    }
    if order.release_at_ms:
        query["AutoReleaseTime"] = release_time(order.release_at_ms)
    return {name: value for name, value in query.items() if value is not None}


def _spot(settings: AlibabaSettings, order: NodeOrder) -> dict[str, Any]:
    if order.market is not Market.SPOT:
        return {"SpotStrategy": "NoSpot"}
    spot: dict[str, Any] = {"SpotStrategy": "SpotAsPriceGo", "SpotDuration": settings.spot_protected_h}
    if order.price_limit_fen_per_h:
        # CNY an hour, at most three decimals.
        limit = round(order.price_limit_fen_per_h / FEN_PER_CNY, 3)
        spot |= {"SpotStrategy": "SpotWithPriceLimit", "SpotPriceLimit": limit}
    return spot


def describe_instances(ids: Sequence[str]) -> dict[str, Any]:
    """The parameters of DescribeInstances for at most 100 ids."""
    return {"InstanceIds": json.dumps(list(ids)), "MaxResults": BATCH_MAX}


def instances(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The instances that DescribeInstances answers."""
    return (answer.get("Instances") or {}).get("Instance") or []


def tag_values(pairs: Iterable[Mapping[str, str]], key: str, value: str) -> dict[str, str]:
    """Tags by their key; ECS and ECI name the two fields differently."""
    return {pair.get(key, ""): pair.get(value, "") for pair in pairs}


def node_of(settings: AlibabaSettings, instance: Mapping[str, Any], now_ms: int) -> Node | None:
    """The node that an instance is; None for one of another installation. The price is not known here."""
    tagged = tag_values((instance.get("Tags") or {}).get("Tag") or [], "TagKey", "TagValue")
    if tagged.get(INSTALLATION_TAG) != settings.installation:
        return None
    addresses = ((instance.get("VpcAttributes") or {}).get("PrivateIpAddress") or {}).get("IpAddress") or []
    spot = (instance.get("SpotStrategy") or "NoSpot") != "NoSpot"
    created_ms = moment_ms(instance.get("CreationTime") or "") or now_ms
    return Node(
        node_id=instance["InstanceId"],
        zone=tagged.get(ZONE_TAG) or settings.zone_named(instance.get("ZoneId") or ""),
        state=_STATES.get(instance.get("Status") or "", NodeState.BOOTING),
        cores=int(instance.get("Cpu") or 0),
        client_token=tagged.get(ORDER_TAG, ""),
        since_ms=now_ms,
        memory_mb=int(instance.get("Memory") or 0),
        instance_type=instance.get("InstanceType") or "",
        market=Market.SPOT if spot else Market.ON_DEMAND,
        address=addresses[0] if addresses else "",
        rented_ms=created_ms,
        release_at_ms=moment_ms(instance.get("AutoReleaseTime") or ""),
        reclaim_ms=now_ms + NOTICE_MS if _is_recycled(instance) else 0,
    )


def _is_recycled(instance: Mapping[str, Any]) -> bool:
    locks = (instance.get("OperationLocks") or {}).get("LockReason") or []
    return any(lock.get("LockReason") == "Recycling" for lock in locks)

"""ECI in the API's words: a container group is a node of its own, created and deleted one a call."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from springtide.drivers.alibaba_ecs import INSTALLATION_TAG, ORDER_TAG, TYPE_TAG, ZONE_TAG, tag_values, tags
from springtide.drivers.alibaba_settings import AlibabaSettings, EciSettings, MachineType
from springtide.drivers.alibaba_times import batch_token, moment_ms
from springtide.model import Market, Node, NodeOrder, NodeState

PAGE_MAX = 20
"""Groups of one page of DescribeContainerGroups (https://help.aliyun.com/document_detail/90343.html)."""

GROUP_CORES_MAX = 64
"""vCPU of one group."""

FEN_PER_CORE_H, FEN_PER_GIB_H = 17.64, 2.21
"""Pay-as-you-go in mainland China: 0.1764 CNY per vCPU·h and 0.0221 CNY per GiB·h (ECI documentation, "Billing")."""

ID_PREFIX = "eci-"

RELEASE_TAG = "springtide-release"
"""When a group ends by itself, in Unix milliseconds: an answer does not tell."""

_STATES = {
    "Scheduling": NodeState.BOOTING,
    "Pending": NodeState.BOOTING,
    "Restarting": NodeState.BOOTING,
    "Running": NodeState.READY,
    "Updating": NodeState.READY,
    "Terminating": NodeState.RELEASING,
}
"""All others (Succeeded, Failed, ScheduleFailed, Expired) cost nothing more: such a group is gone."""

_MB_PER_GIB = 1024


def price_fen_per_h(cores: int, memory_mb: int) -> float:
    """What a group of this size costs."""
    return cores * FEN_PER_CORE_H + memory_mb / _MB_PER_GIB * FEN_PER_GIB_H


def group_name(order_token: str, number: int) -> str:
    """The name of a group of an order: always the same, so that it can be found by it."""
    digest = hashlib.sha256(f"{order_token}-{number}".encode()).hexdigest()[:32]
    return f"springtide-{digest}"


def create_group(
    settings: AlibabaSettings, eci: EciSettings, order: NodeOrder, machine: MachineType, number: int, now_ms: int
) -> dict[str, Any]:
    """The parameters of CreateContainerGroup. Its end is a span from now on, so a later repetition differs in it."""
    zone = settings.zones[order.zone]
    container: dict[str, Any] = {"Name": "node", "Image": eci.image}
    if eci.command:
        container["Command"] = list(eci.command)
    if eci.environment:
        container["EnvironmentVar"] = [{"Key": key, "Value": value} for key, value in eci.environment.items()]
    query: dict[str, Any] = {
        "ContainerGroupName": group_name(order.client_token, number),
        "ClientToken": batch_token(order.client_token, number),
        "ZoneId": settings.zone_id(order.zone),
        "VSwitchId": zone.vswitch_id,
        "SecurityGroupId": zone.security_group_id or settings.security_group_id,
        "Cpu": machine.cores,
        "Memory": machine.memory_mb / _MB_PER_GIB,
        "RestartPolicy": "Always",
        "AutoMatchImageCache": eci.auto_match_image_cache,
        "Container": [container],
        "Tag": [
            *tags(settings, order, machine.instance_type),
            {"Key": RELEASE_TAG, "Value": str(order.release_at_ms)},
        ],
    }
    if settings.ram_role:
        query["RamRoleName"] = settings.ram_role
    if order.release_at_ms:
        query["ActiveDeadlineSeconds"] = max(1, -(-(order.release_at_ms - now_ms) // 1000))
    return query


def describe_groups(ids: Sequence[str]) -> dict[str, Any]:
    """The parameters of DescribeContainerGroups for at most 20 ids."""
    return {"ContainerGroupIds": json.dumps(list(ids)), "Limit": PAGE_MAX}


def node_of(settings: AlibabaSettings, group: Mapping[str, Any], now_ms: int) -> Node | None:
    """The node that a group is; None for one of another installation, and for one that has ended."""
    tagged = tag_values(group.get("Tags") or [], "Key", "Value")
    state = _STATES.get(group.get("Status") or "")
    if tagged.get(INSTALLATION_TAG) != settings.installation or state is None:
        return None
    cores, memory_mb = round(float(group.get("Cpu") or 0)), round(float(group.get("Memory") or 0) * _MB_PER_GIB)
    return Node(
        node_id=group["ContainerGroupId"],
        zone=tagged.get(ZONE_TAG) or settings.zone_named(group.get("ZoneId") or ""),
        state=state,
        cores=cores,
        client_token=tagged.get(ORDER_TAG, ""),
        since_ms=now_ms,
        memory_mb=memory_mb,
        instance_type=tagged.get(TYPE_TAG, ""),
        market=Market.ECI,
        price_fen_per_h=price_fen_per_h(cores, memory_mb),
        address=group.get("IntranetIp") or "",
        rented_ms=moment_ms(group.get("CreationTime") or "") or now_ms,
        release_at_ms=int(tagged.get(RELEASE_TAG) or 0),
    )

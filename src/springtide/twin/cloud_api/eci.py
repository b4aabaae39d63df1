"""Container groups of ECI, version 2018-08-08: create, describe, delete, and what one costs."""

from springtide.model import Market as Channel
from springtide.model import Node, NodeOrder, NodeState, Offer
from springtide.twin.cloud_api.account import PENDING_SHARE, Account, Details, Machine, after, matches, vswitch_of
from springtide.twin.cloud_api.answers import NOT_FOUND, ApiError, Json, invalid, missing, second_text
from springtide.twin.cloud_api.ecs_instances import TOKEN_MAX
from springtide.twin.cloud_api.parameters import Parameters
from springtide.twin.market_errors import NoStock
from springtide.twin.market_settings import ECI_FEN_PER_CORE_H, ECI_FEN_PER_GIB_H, eci_type

CONTAINERS_MAX = 20
CORES_MAX = 64
PAGE_MAX = 20
_STATUSES = ("Scheduling", "Pending", "Running")


def create_container_group(account: Account, given: Parameters) -> Json:
    """Create one container group.

    Rules of the CreateContainerGroup reference: one group a call, at most 64 vCPU and 20 containers;
    `ContainerGroupName`, `SecurityGroupId` and `Container.N.Name` and `.Image` are required; `VSwitchId` may name
    several, separated by commas, which are tried in order; `ClientToken` as in ECS; NoInstanceStock when sold out;
    `ActiveDeadlineSeconds` ends the group by itself. Groups on spot capacity are not sold here.
    """
    given.required("ContainerGroupName")
    given.required("SecurityGroupId")
    if given.text("SpotStrategy", "NoSpot") != "NoSpot":
        raise invalid("SpotStrategy", "this cloud sells no container groups on spot capacity")
    _check_containers(given)
    zones = _zones(account, given)
    token = given.text("ClientToken")
    if len(token) > TOKEN_MAX or not token.isascii():
        raise invalid("ClientToken", f"it must be at most {TOKEN_MAX} ASCII characters")
    known = account.market.sold.get(token)
    if known is not None:
        account.market.purchase(known.order, given.fingerprint())
        return {"ContainerGroupId": known.node_ids[0]}
    token = token or f"without-{account.market.created}-{len(account.market.sold)}"
    node = _buy(account, given, zones, token)
    details = Details(vswitch_of(node.zone), security_group=given.text("SecurityGroupId"))
    machine = Machine(details, given.text("ContainerGroupName"), "", given.tags())
    account.remember([node], [machine])
    return {"ContainerGroupId": node.node_id}


def describe_container_groups(account: Account, given: Parameters) -> Json:
    """Container groups, at most 20 a page (DescribeContainerGroups reference: `Limit`, `NextToken`)."""
    ids, tags, name = given.ids("ContainerGroupIds", PAGE_MAX), given.tags(), given.text("ContainerGroupName")
    zone, status = given.text("ZoneId"), given.text("Status")
    found = [
        node
        for node in account.nodes(containers=True)
        if (ids is None or node.node_id in ids)
        and zone in {"", node.zone}
        and status in {"", _status(account, node)}
        and matches(account.machine(node), name, tags)
    ]
    size = given.whole("Limit", PAGE_MAX, 1, PAGE_MAX)
    rest = after(found, given.text("NextToken"))
    page = rest[:size]
    following: Json = {"NextToken": page[-1].node_id} if len(rest) > size else {}
    return {"ContainerGroups": [_group(account, node) for node in page], "TotalCount": len(found), **following}


def delete_container_group(account: Account, given: Parameters) -> Json:
    """Delete one container group, whatever its status (DeleteContainerGroup reference)."""
    node = account.market.live.get(given.required("ContainerGroupId"))
    if node is None or node.market is not Channel.ECI:
        raise ApiError("InvalidParameter.ContainerGroupId.NotFound", "The container group does not exist.", NOT_FOUND)
    account.market.end([node.node_id])
    return {}


def describe_container_group_price(account: Account, given: Parameters) -> Json:
    """What a group of `Cpu` vCPUs and `Memory` GiB costs a second, in CNY (DescribeContainerGroupPrice reference)."""
    cpu, memory = given.decimal("Cpu", 0.0, 0.0, CORES_MAX), given.decimal("Memory", 0.0, 0.0, 1_024)
    if not cpu or not memory:
        raise missing("Cpu" if not cpu else "Memory")
    by_hour = cpu * ECI_FEN_PER_CORE_H + memory * ECI_FEN_PER_GIB_H
    wanted = [offer.price_fen_per_h for offer in _offers(account, cpu, memory)]
    a_second = round((min(wanted) if wanted else by_hour) / 100 / 3600, 10)
    price: Json = {"Currency": "CNY", "OriginalPrice": a_second, "TradePrice": a_second, "DiscountPrice": 0.0}
    return {"PriceInfo": {"Price": price}}


def _check_containers(given: Parameters) -> None:
    number = 1
    while given.text(f"Container.{number}.Name") or given.text(f"Container.{number}.Image"):
        if not (given.text(f"Container.{number}.Name") and given.text(f"Container.{number}.Image")):
            raise missing(f"Container.{number}.Image")
        number += 1
        if number > CONTAINERS_MAX + 1:
            raise invalid("Container", f"a group has at most {CONTAINERS_MAX} containers")
    if number == 1:
        raise missing("Container.1.Image")


def _zones(account: Account, given: Parameters) -> list[str]:
    vswitches = [each.strip() for each in given.text("VSwitchId").split(",") if each.strip()]
    if vswitches:
        return [account.zone_of_vswitch(each) for each in vswitches]
    zone = given.text("ZoneId")
    if zone and zone not in account.zones():
        raise ApiError("InvalidZoneId.NotFound", f"The zone {zone} does not exist.", NOT_FOUND)
    return [zone] if zone else account.zones()


def _buy(account: Account, given: Parameters, zones: list[str], token: str) -> Node:
    cpu, memory = given.decimal("Cpu", 2.0, 0.25, CORES_MAX), given.decimal("Memory", 4.0, 0.5, 1_024)
    sizes = {offer.instance_type for offer in _offers(account, cpu, memory)}
    if not sizes:
        raise ApiError("InvalidParameter.CPU.Memory", f"{cpu:g} vCPU with {memory:g} GiB is not a size of this cloud.")
    seconds = given.whole("ActiveDeadlineSeconds", 0, 0, 10**9)
    release_at_ms = account.now_ms + seconds * 1000 if seconds else 0
    sold_out: NoStock | None = None
    for zone in zones:
        order = NodeOrder(zone, 1, token, min(sizes), Channel.ECI, release_at_ms=release_at_ms)
        try:
            account.check_addresses(zone, 1)
            return account.market.purchase(order, given.fingerprint())[0]
        except NoStock as error:
            sold_out = error
    raise sold_out or ApiError("InvalidZoneId.NotFound", "There is no zone to create it in.", NOT_FOUND)


def _offers(account: Account, cpu: float, memory: float) -> list[Offer]:
    name = eci_type(round(cpu), round(memory))
    return [
        offer
        for offer in account.market.offers()
        if offer.market is Channel.ECI
        and (offer.instance_type == name or (offer.cores, offer.memory_mb) == (cpu, memory * 1024))
    ]


def _status(account: Account, node: Node) -> str:
    """Scheduling (being created), Pending (being started), Running (DescribeContainerGroups reference)."""
    if node.state is NodeState.READY:
        return _STATUSES[2]
    return _STATUSES[0] if account.progress(node) < PENDING_SHARE else _STATUSES[1]


def _group(account: Account, node: Node) -> Json:
    machine = account.machine(node)
    tags: list[Json] = [{"Key": key, "Value": value} for key, value in machine.tags.items()]
    return {
        "ContainerGroupId": node.node_id,
        "ContainerGroupName": machine.name,
        "RegionId": account.region,
        "ZoneId": node.zone,
        "VSwitchId": machine.details.vswitch,
        "SecurityGroupId": machine.details.security_group,
        "Status": _status(account, node),
        "Cpu": float(node.cores),
        "Memory": node.memory_mb / 1024,
        "IntranetIp": node.address,
        "CreationTime": second_text(node.rented_ms),
        "RestartPolicy": "Always",
        "SpotStrategy": "NoSpot",
        "Tags": tags,
    }

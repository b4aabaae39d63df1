"""DescribeInstances, DescribeInstanceStatus, ListTagResources and TagResources of ECS, version 2014-05-26."""

from collections.abc import Callable

from springtide.model import Market as Channel
from springtide.model import Node
from springtide.twin.cloud_api.account import Account, after, matches, vswitch_of
from springtide.twin.cloud_api.answers import NOT_FOUND, ApiError, Json, invalid, minute_text, missing
from springtide.twin.cloud_api.ecs_instances import status_of
from springtide.twin.cloud_api.parameters import Parameters

PAGE_MIN, PAGE_MAX = 10, 100
STATUS_PAGE_MAX = 50
TAGGED_MAX = 1_000
TAG_PAGE = 50
RESOURCES_MAX = 50
RECYCLING = "Recycling"


def describe_instances(account: Account, given: Parameters) -> Json:
    """Instances, by page.

    Rules of the DescribeInstances reference: `MaxResults` below 10 is 10 and above 100 is 100; `NextToken` is empty on
    the last page; `InstanceIds` is a JSON array of at most 100; a filter by tag finds 1,000 resources at most; a spot
    instance that is about to be taken away has the lock reason Recycling; times are cut to the minute.
    """
    if given.flag("DryRun"):
        raise ApiError("DryRunOperation", "Request validation has been passed with DryRun flag set.")
    found = _filtered(account, given)
    if given.text("MaxResults") or given.text("NextToken") or not given.text("PageNumber"):
        size = min(max(given.whole("MaxResults", PAGE_MIN, 1, 1_000_000), PAGE_MIN), PAGE_MAX)
        rest = after(found, given.text("NextToken"))
        page, number = rest[:size], 1
        following = page[-1].node_id if len(rest) > size else ""
    else:
        size = given.whole("PageSize", PAGE_MIN, 1, PAGE_MAX)
        number = given.whole("PageNumber", 1, 1, 1_000_000)
        page, following = found[(number - 1) * size : number * size], ""
    return {
        "Instances": {"Instance": [_instance(account, node) for node in page]},
        "TotalCount": len(found),
        "PageNumber": number,
        "PageSize": size,
        "NextToken": following,
    }


def describe_instance_status(account: Account, given: Parameters) -> Json:
    """Statuses alone: at most 50 a page, at most 100 ids (DescribeInstanceStatus reference)."""
    ids, zone = set(given.numbered("InstanceId")), given.text("ZoneId")
    found = [
        node for node in account.nodes(containers=False) if (not ids or node.node_id in ids) and zone in {"", node.zone}
    ]
    size = given.whole("PageSize", PAGE_MIN, 1, STATUS_PAGE_MAX)
    number = given.whole("PageNumber", 1, 1, 1_000_000)
    page = found[(number - 1) * size : number * size]
    statuses: list[Json] = [{"InstanceId": node.node_id, "Status": status_of(account, node)} for node in page]
    return {
        "InstanceStatuses": {"InstanceStatus": statuses},
        "TotalCount": len(found),
        "PageNumber": number,
        "PageSize": size,
    }


def list_tag_resources(account: Account, given: Parameters) -> Json:
    """Tags of instances, one entry for each: with `Tag.N`, entries of these keys of the instances that have them all.

    Rules of the ListTagResources reference: `ResourceType` is required, at most 50 `ResourceId.N`, pages by
    `NextToken`. The size of a page is not documented; 50 entries here, whole instances.
    """
    if given.required("ResourceType") != "instance":
        raise invalid("ResourceType", "this cloud tags instances alone")
    ids, tags = set(given.numbered("ResourceId", RESOURCES_MAX)), given.tags()
    if not ids and not tags:
        raise missing("Tag.1.Key")
    entries: list[Json] = []
    last = ""
    for node in after(account.nodes(containers=False), given.text("NextToken")):
        machine = account.machine(node)
        if (ids and node.node_id not in ids) or not matches(machine, "", tags):
            continue
        if len(entries) >= TAG_PAGE:
            return {"TagResources": {"TagResource": entries}, "NextToken": last}
        entries.extend(
            {"ResourceId": node.node_id, "ResourceType": "instance", "TagKey": key, "TagValue": value}
            for key, value in machine.tags.items()
            if not tags or key in tags
        )
        last = node.node_id
    return {"TagResources": {"TagResource": entries}, "NextToken": ""}


def tag_resources(account: Account, given: Parameters) -> Json:
    """Give instances more tags; at most 50 `ResourceId.N` and 20 `Tag.N` (TagResources reference)."""
    if given.required("ResourceType") != "instance":
        raise invalid("ResourceType", "this cloud tags instances alone")
    ids = given.numbered("ResourceId", RESOURCES_MAX)
    tags = given.tags()
    if not ids or not tags:
        raise missing("ResourceId.1" if not ids else "Tag.1.Key")
    for node_id in ids:
        node = account.market.live.get(node_id)
        if node is None or node.market is Channel.ECI:
            raise ApiError("InvalidResourceId.NotFound", f"{node_id} does not exist.", NOT_FOUND)
        machine = account.machine(node)
        machine.tags.update(tags)
        account.machines[node_id] = machine
    return {}


def _filtered(account: Account, given: Parameters) -> list[Node]:
    ids, tags, name = given.ids("InstanceIds", PAGE_MAX), given.tags(), given.text("InstanceName")
    found = account.nodes(containers=False)
    if ids is not None:
        wanted = set(ids)
        found = [node for node in found if node.node_id in wanted]
    for parameter, value_of in _filters(account).items():
        if value := given.text(parameter):
            found = [node for node in found if value_of(node) == value]
    if name or tags:
        found = [node for node in found if matches(account.machine(node), name, tags)]
    return found[:TAGGED_MAX] if tags else found


def _filters(account: Account) -> dict[str, Callable[[Node], str]]:
    return {
        "ZoneId": lambda node: node.zone,
        "InstanceType": lambda node: node.instance_type,
        "VSwitchId": lambda node: vswitch_of(node.zone),
        "Status": lambda node: status_of(account, node),
        "LockReason": lambda node: RECYCLING if node.reclaim_ms else "",
        "InstanceChargeType": lambda _: "PostPaid",
    }


def _instance(account: Account, node: Node) -> Json:
    machine = account.machine(node)
    details = machine.details
    locks: list[Json] = [{"LockReason": RECYCLING}] if node.reclaim_ms else []
    tags: list[Json] = [{"TagKey": key, "TagValue": value} for key, value in machine.tags.items()]
    status = status_of(account, node)
    return {
        "InstanceId": node.node_id,
        "InstanceName": machine.name,
        "HostName": machine.host_name or f"iZ{node.node_id.removeprefix('i-')}Z",
        "Status": status,
        "RegionId": account.region,
        "ZoneId": node.zone,
        "InstanceType": node.instance_type,
        "InstanceTypeFamily": node.instance_type.rpartition(".")[0],
        "Cpu": node.cores,
        "Memory": node.memory_mb,
        "InstanceChargeType": details.charge_type,
        "SpotStrategy": details.strategy,
        "SpotPriceLimit": float(details.price_limit or 0),
        "CreationTime": minute_text(node.rented_ms),
        "StartTime": minute_text(node.since_ms) if status == "Running" else "",
        "AutoReleaseTime": minute_text(node.release_at_ms) if node.release_at_ms else "",
        "ImageId": details.image,
        "DeletionProtection": details.deletion_protection,
        "InstanceNetworkType": "vpc",
        "VpcAttributes": {
            "VpcId": f"vpc-{account.region}",
            "VSwitchId": details.vswitch,
            "PrivateIpAddress": {"IpAddress": [node.address]},
            "NatIpAddress": "",
        },
        "SecurityGroupIds": {"SecurityGroupId": [details.security_group] if details.security_group else []},
        "OperationLocks": {"LockReason": locks},
        "Tags": {"Tag": tags},
    }

"""RunInstances, DeleteInstances and ModifyInstanceAutoReleaseTime of ECS, version 2014-05-26."""

import base64
import binascii

from springtide.model import Market as Channel
from springtide.model import Node, NodeOrder, NodeState
from springtide.twin.cloud_api.account import PENDING_SHARE, Account, Details, Machine, vswitch_of
from springtide.twin.cloud_api.answers import (
    FORBIDDEN,
    NOT_FOUND,
    ApiError,
    Json,
    invalid,
    missing,
    read_moment,
)
from springtide.twin.cloud_api.parameters import Parameters
from springtide.twin.market import BATCH_MAX

USER_DATA_MAX = 32 * 1024
TOKEN_MAX = 64
MINUTE_MS = 60_000
RELEASE_MAX_MS = 3 * 366 * 86_400_000
_SPOT = {"SpotWithPriceLimit", "SpotAsPriceGo"}


def run_instances(account: Account, given: Parameters) -> Json:
    """Rent instances.

    Rules, all of the RunInstances reference: `Amount` 1 to 100; without `MinAmount` all or nothing, with it a stock in
    between is a success with fewer; `ClientToken` of at most 64 ASCII characters, the same parameters or
    IdempotentParameterMismatch; `DryRun` checks stock too and its success is the error DryRunOperation; `UserData`
    Base64 of at most 32 KB; `AutoReleaseTime` cut to the minute, half an hour to three years ahead; SpotWithPriceLimit
    takes `SpotPriceLimit` in CNY an hour. A repeated call answers as the first did, also with instances that are gone.
    """
    order = _order(account, given)
    fingerprint = given.fingerprint()
    if order.client_token not in account.market.sold:
        _check_launch(given)
        account.check_addresses(order.zone, order.count)
    if given.flag("DryRun"):
        account.market.check(order)
        raise ApiError("DryRunOperation", "Request validation has been passed with DryRun flag set.")
    again = order.client_token in account.market.sold
    nodes = account.market.purchase(order, fingerprint)
    if not again:
        account.remember(nodes, _machines(given, order, nodes))
    ids = account.market.sold[order.client_token].node_ids
    price = sum(node.price_fen_per_h for node in nodes) / 100
    return {"InstanceIdSets": {"InstanceIdSet": list(ids)}, "TradePrice": round(price, 4)}


def delete_instances(account: Account, given: Parameters) -> Json:
    """Release instances: all of them or none.

    Rules of the DeleteInstances reference: 1 to 100 `InstanceId.N`; a running instance only with `Force`; the success
    of a dry run is the error DRYRUN.SUCCESS; OperationDenied.DeletionProtection. An instance that is still Pending
    cannot be released (IncorrectInstanceStatus.Initializing). Whether one bad id fails the call for the others is not
    documented; here it does.
    """
    nodes = _known(account, given.numbered("InstanceId", BATCH_MAX))
    for node in nodes:
        if account.machine(node).details.deletion_protection:
            raise ApiError("OperationDenied.DeletionProtection", f"{node.node_id} has deletion protection.", FORBIDDEN)
        if account.progress(node) < PENDING_SHARE:
            raise ApiError("IncorrectInstanceStatus.Initializing", f"{node.node_id} is still being created.", FORBIDDEN)
        if not given.flag("Force"):
            raise ApiError("IncorrectInstanceStatus", f"{node.node_id} is not stopped; set Force to true.", FORBIDDEN)
    if given.flag("DryRun"):
        raise ApiError("DRYRUN.SUCCESS", "Request validation has been passed with DryRun flag set.")
    account.market.end([node.node_id for node in nodes])
    return {}


def modify_instance_auto_release_time(account: Account, given: Parameters) -> Json:
    """Move the automatic release of one instance; without `AutoReleaseTime` it is cancelled."""
    (node,) = _known(account, [given.required("InstanceId")])
    account.market.move_release([node.node_id], _release_at(account, given))
    return {}


def _order(account: Account, given: Parameters) -> NodeOrder:
    count = given.whole("Amount", 1, 1, BATCH_MAX)
    count_min = given.whole("MinAmount", count, 1, BATCH_MAX)
    if count_min > count:
        raise invalid("MinAmount", "it must not be above Amount")
    token = given.text("ClientToken")
    if len(token) > TOKEN_MAX or not token.isascii():
        raise invalid("ClientToken", f"it must be at most {TOKEN_MAX} ASCII characters")
    strategy = given.text("SpotStrategy", "NoSpot")
    if strategy not in {"NoSpot", *_SPOT}:
        raise invalid("SpotStrategy", "it must be NoSpot, SpotWithPriceLimit or SpotAsPriceGo")
    if given.text("InstanceChargeType", "PostPaid") != "PostPaid":
        raise invalid("InstanceChargeType", "this cloud sells pay-as-you-go instances alone")
    limit = given.decimal("SpotPriceLimit", 0.0, 0.001, 1e6) if strategy == "SpotWithPriceLimit" else 0.0
    return NodeOrder(
        zone=_zone(account, given),
        count=count,
        client_token=token or f"without-{account.market.created}-{len(account.market.sold)}",
        instance_type=given.required("InstanceType"),
        market=Channel.SPOT if strategy in _SPOT else Channel.ON_DEMAND,
        count_min=count_min,
        release_at_ms=_release_at(account, given, again=token in account.market.sold),
        price_limit_fen_per_h=round(limit * 100, 4),
    )


def _zone(account: Account, given: Parameters) -> str:
    zone, vswitch = given.text("ZoneId"), given.text("VSwitchId")
    if vswitch:
        of_vswitch = account.zone_of_vswitch(vswitch)
        if zone and zone != of_vswitch:
            raise ApiError("InvalidParameter.Mismatch", f"The vSwitch {vswitch} is not in {zone}.", NOT_FOUND)
        return of_vswitch
    if not zone:
        raise missing("VSwitchId")
    if zone not in account.zones():
        raise ApiError("InvalidZoneId.NotFound", f"The zone {zone} does not exist.", NOT_FOUND)
    return zone


def _release_at(account: Account, given: Parameters, *, again: bool = False) -> int:
    text = given.text("AutoReleaseTime")
    if not text:
        return 0
    try:
        at_ms = read_moment(text) // MINUTE_MS * MINUTE_MS
    except ValueError as error:
        raise ApiError("InvalidAutoReleaseTime.Malformed", "AutoReleaseTime is not ISO 8601 in UTC.") from error
    ahead_ms = at_ms + MINUTE_MS - account.now_ms
    if not again and not account.settings.release_min_ms <= ahead_ms <= RELEASE_MAX_MS:
        raise ApiError("InvalidAutoReleaseTime.Malformed", "AutoReleaseTime must be half an hour to three years ahead.")
    return at_ms


def _check_launch(given: Parameters) -> None:
    """Refuse what an instance cannot be made from: `ImageId` and `SecurityGroupId`, or a launch template with them."""
    if not (given.text("LaunchTemplateId") or given.text("LaunchTemplateName")):
        if not (given.text("ImageId") or given.text("ImageFamily")):
            raise missing("ImageId")
        if not (given.text("SecurityGroupId") or given.text("SecurityGroupIds.1")):
            raise missing("SecurityGroupId")
    try:
        size = len(base64.b64decode(given.text("UserData"), validate=True))
    except (binascii.Error, ValueError) as error:
        raise ApiError("InvalidUserData.Base64FormatInvalid", "UserData is not Base64.") from error
    if size > USER_DATA_MAX:
        raise ApiError("InvalidUserData.SizeExceeded", "UserData exceeds 32 KB.", FORBIDDEN)


def _machines(given: Parameters, order: NodeOrder, nodes: list[Node]) -> list[Machine]:
    """Names: `UniqueSuffix` appends 001 to 999 (RunInstances); without a name it is the instance id."""
    details = Details(
        vswitch=vswitch_of(order.zone),
        image=given.text("ImageId"),
        security_group=given.text("SecurityGroupId") or given.text("SecurityGroupIds.1"),
        strategy=given.text("SpotStrategy", "NoSpot"),
        price_limit=given.text("SpotPriceLimit"),
        deletion_protection=given.flag("DeletionProtection"),
    )
    tags, numbered = given.tags(), given.flag("UniqueSuffix") and len(nodes) > 1
    machines = []
    for number, node in enumerate(nodes, 1):
        suffix = f"{number:03d}" if numbered else ""
        name, host = given.text("InstanceName"), given.text("HostName")
        host = host.replace("${instance_id}", node.node_id)
        machines.append(
            Machine(details, f"{name}{suffix}" if name else node.node_id, f"{host}{suffix}" if host else "", dict(tags))
        )
    return machines


def _known(account: Account, ids: list[str]) -> list[Node]:
    if not ids:
        raise missing("InstanceId")
    unknown = [each for each in ids if each not in account.market.live or each.startswith("eci-")]
    if unknown:
        raise ApiError("InvalidInstanceId.NotFound", f"These do not exist: {' '.join(unknown)}", NOT_FOUND)
    return [account.market.live[each] for each in dict.fromkeys(ids)]


def status_of(account: Account, node: Node) -> str:
    """An instance's status: Pending, Starting, Running (DescribeInstances; Stopping and Stopped do not occur)."""
    if node.state is NodeState.READY:
        return "Running"
    return "Pending" if account.progress(node) < PENDING_SHARE else "Starting"

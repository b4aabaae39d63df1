"""The HTTP side of the served cloud: who calls, what for, may he, and the answer in the form the SDK reads.

Calls come as the official SDK sends them: `POST /?Parameter=…` (or GET, or a form in the body), the action and the
version in the headers x-acs-action and x-acs-version, signed with ACS3-HMAC-SHA256 over them.
"""

import hmac
import math
from collections.abc import Callable
from urllib.parse import parse_qsl

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from springtide.errors import CloudError, CloudThrottled
from springtide.ports import Clock, Ids
from springtide.twin.cloud_api import eci, ecs_describe, ecs_instances, ecs_offers
from springtide.twin.cloud_api.account import Account
from springtide.twin.cloud_api.answers import BAD_REQUEST, NOT_FOUND, ApiError, Json
from springtide.twin.cloud_api.faults import PATH, Fault, LoseAnswers, status, strike
from springtide.twin.cloud_api.parameters import Parameters
from springtide.twin.cloud_api.signature import AccessKey, SignatureCheck, Signed

BODY_MAX = 256 * 1024
ECS, ECI = "2014-05-26", "2018-08-08"

Handler = Callable[[Account, Parameters], Json]

ACTIONS: dict[tuple[str, str], Handler] = {
    (ECS, "RunInstances"): ecs_instances.run_instances,
    (ECS, "DeleteInstances"): ecs_instances.delete_instances,
    (ECS, "ModifyInstanceAutoReleaseTime"): ecs_instances.modify_instance_auto_release_time,
    (ECS, "DescribeInstances"): ecs_describe.describe_instances,
    (ECS, "DescribeInstanceStatus"): ecs_describe.describe_instance_status,
    (ECS, "ListTagResources"): ecs_describe.list_tag_resources,
    (ECS, "TagResources"): ecs_describe.tag_resources,
    (ECS, "DescribeAvailableResource"): ecs_offers.describe_available_resource,
    (ECS, "DescribePrice"): ecs_offers.describe_price,
    (ECS, "DescribeSpotPriceHistory"): ecs_offers.describe_spot_price_history,
    (ECS, "DescribeAccountAttributes"): ecs_offers.describe_account_attributes,
    (ECI, "CreateContainerGroup"): eci.create_container_group,
    (ECI, "DescribeContainerGroups"): eci.describe_container_groups,
    (ECI, "DeleteContainerGroup"): eci.delete_container_group,
    (ECI, "DescribeContainerGroupPrice"): eci.describe_container_group_price,
}
"""What is served, by API version and action."""

_CHANGING = ("Run", "Delete", "Modify", "Tag", "Create")


class CloudApi:
    """The API of one account."""

    def __init__(self, account: Account, keys: AccessKey, clock: Clock, ids: Ids) -> None:
        """Serve this account to whoever has the keys."""
        self._account = account
        self._keys = keys
        self._signatures = SignatureCheck([keys])
        self._clock = clock
        self._ids = ids
        self._lost_answers: dict[str, int] = {}
        self.before: Callable[[], None] = _nothing
        """Called before each call is looked at: it brings the cloud's clock up to date."""
        self.keep: Callable[[], None] = _nothing
        """Called after a call that may have changed something, before it is answered."""
        self.app = Starlette(
            routes=[
                Route("/", self._call, methods=["GET", "POST"]),
                Route(PATH, self._faults, methods=["GET", "POST"]),
            ]
        )

    async def _call(self, request: Request) -> Response:
        body = await _body(request)
        self.before()
        request_id = self._ids.new("").upper()
        headers: dict[str, str] = {}
        try:
            answer, code = self._serve(request, body), 200
        except ApiError as error:
            answer, code = {"Code": error.code, "Message": str(error)}, error.status
        except CloudError as error:
            answer, code = _refusal(error)
            if isinstance(error, CloudThrottled):
                headers["x-acs-retry-after"] = str(max(math.ceil(error.retry_after_s * 1000), 1))
        if code != 200:  # noqa: PLR2004 - HTTP OK
            answer["HostId"] = request.headers.get("host", "")
        answer["RequestId"] = request_id
        return Response(msgspec.json.encode(answer), code, headers, "application/json")

    def _serve(self, request: Request, body: bytes) -> Json:
        if len(body) > BODY_MAX:
            raise ApiError("RequestEntityTooLarge", f"The body exceeds {BODY_MAX} bytes.")
        query = parse_qsl(request.url.query, keep_blank_values=True)
        signed = Signed(request.method, request.url.path, query, request.headers, body)
        self._signatures.check(signed, self._clock.now_ms())
        action = request.headers["x-acs-action"]
        handler = ACTIONS.get((request.headers["x-acs-version"], action))
        if handler is None:
            raise ApiError("InvalidAction.NotFound", f"The action {action} is not served here.", NOT_FOUND)
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        given = Parameters(dict(query + (parse_qsl(body.decode(), keep_blank_values=True) if form else [])))
        if given.required("RegionId") != self._account.region:
            raise ApiError("InvalidRegionId.NotFound", f"Only {self._account.region} is served here.", NOT_FOUND)
        self._account.market.meter.admit(action)
        answer = handler(self._account, given)
        if action.startswith(_CHANGING):
            self.keep()
        if self._is_lost(action):
            raise ApiError("ServiceUnavailable", "The request has failed due to a temporary failure.", 503)
        return answer

    def lose_answers(self, api: str, count: int) -> None:
        """Carry out the next calls of an API ("": of any), and answer them with ServiceUnavailable all the same."""
        self._lost_answers[api] = count

    def _is_lost(self, action: str) -> bool:
        name = next((name for name in (action, "") if self._lost_answers.get(name)), None)
        if name is not None:
            self._lost_answers[name] -= 1
        return name is not None

    async def _faults(self, request: Request) -> Response:
        expected = f"Bearer {self._keys.access_key_secret}"
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
            return Response(b'{"error":"send the secret of the access key as a bearer token"}', 401)
        body = await _body(request)
        self.before()
        if request.method == "POST":
            try:
                fault = msgspec.json.decode(body, type=Fault)
            except msgspec.DecodeError as error:
                return Response(msgspec.json.encode({"error": str(error)}), BAD_REQUEST)
            if isinstance(fault, LoseAnswers):
                self.lose_answers(fault.api, fault.count)
            else:
                strike(self._account.market, fault)
            self.keep()
        return Response(msgspec.json.encode(status(self._account.market)), media_type="application/json")


async def _body(request: Request) -> bytes:
    """The body, or so much of it that it is seen to be too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > BODY_MAX:
            break
    return body


def _refusal(error: CloudError) -> tuple[Json, int]:
    code, answer_status = getattr(error, "code", "InternalError"), getattr(error, "status", 500)
    return {"Code": str(code), "Message": str(error)}, int(answer_status)


def _nothing() -> None:
    """What is called when nobody listens."""

"""The official SDK against a served cloud, and raw HTTP signed by hand."""

import datetime as dt
import hashlib
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from alibabacloud_ecs20140526.client import Client as EcsClient
from alibabacloud_tea_openapi.client import Client as OpenApiClient
from alibabacloud_tea_openapi.utils import Utils
from alibabacloud_tea_openapi.utils_models import Config, OpenApiRequest, Params
from darabonba.runtime import RuntimeOptions

from springtide.drivers.system import SystemClock, SystemIds, chance
from springtide.model import Market as Channel
from springtide.model import Offer
from springtide.twin.cloud_api import AccessKey, ServedCloud, ServedOptions, Sources
from springtide.twin.cloud_api.signature import ALGORITHM, Signed, sign
from springtide.twin.market import MarketSettings

REGION, ZONE, OTHER = "cn-beijing", "cn-beijing-h", "cn-beijing-i"
TYPE = "ecs.c7.8xlarge"
OFFERS = (
    Offer(ZONE, TYPE, Channel.ON_DEMAND, 32, 65_536, 652.3, stock=250, boot_ms=(300, 600)),
    Offer(ZONE, TYPE, Channel.SPOT, 32, 65_536, 163.0, stock=100, boot_ms=(300, 600)),
    Offer(OTHER, TYPE, Channel.ON_DEMAND, 32, 65_536, 652.3, stock=5, boot_ms=(300, 600)),
    Offer(ZONE, "eci-8c16g", Channel.ECI, 8, 16_384, 176.48, stock=200, boot_ms=(300, 600)),
)


@asynccontextmanager
async def served(options: ServedOptions | None = None, **market: Any) -> AsyncIterator[ServedCloud]:
    """A cloud with a few offers that boot fast."""
    settings = MarketSettings(**{"offers": OFFERS, "refill_share_per_h": 0.0, **market})
    given = options or ServedOptions(market=settings)
    async with ServedCloud(Sources(SystemClock(), SystemIds(), chance(1)), given) as cloud:
        yield cloud


def config(cloud: ServedCloud, secret: str = "") -> Config:
    return Config(
        access_key_id=cloud.keys.access_key_id,
        access_key_secret=secret or cloud.keys.access_key_secret,
        endpoint=cloud.endpoint,
        protocol="http",
        region_id=REGION,
    )


def ecs(cloud: ServedCloud, secret: str = "") -> EcsClient:
    return EcsClient(config(cloud, secret))


async def eci(cloud: ServedCloud, action: str, **query: Any) -> dict[str, Any]:
    """One call of ECI by the generic client; the answer's body."""
    params = Params(
        action=action,
        version="2018-08-08",
        protocol="HTTP",
        method="POST",
        auth_type="AK",
        style="RPC",
        pathname="/",
        req_body_type="formData",
        body_type="json",
    )
    request = OpenApiRequest(query=Utils.query({"RegionId": REGION, **query}))
    answer = await OpenApiClient(config(cloud)).call_api_async(params, request, RuntimeOptions())
    body: dict[str, Any] = answer["body"]
    return body


def signed_headers(
    endpoint: str, key: AccessKey, action: str, query: Mapping[str, str], **changed: str
) -> dict[str, str]:
    """The headers of `POST /?query`, signed with a key; what is `changed` is signed as well, after the change."""
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    headers = {
        "host": endpoint,
        "x-acs-action": action,
        "x-acs-version": "2014-05-26",
        "x-acs-date": now,
        "x-acs-signature-nonce": secrets.token_hex(8),
        "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    request = Signed("POST", "/", list(query.items()), headers, b"")
    signature = sign(request, sorted(headers), key.access_key_secret)
    names = ";".join(sorted(headers))
    authorization = f"{ALGORITHM} Credential={key.access_key_id},SignedHeaders={names},Signature={signature}"
    return {**headers, "authorization": authorization}


async def raw(cloud: ServedCloud, action: str, query: Mapping[str, str], **changed: str) -> httpx.Response:
    """One call of ECS without the SDK."""
    given = {"RegionId": REGION, **query}
    headers = signed_headers(cloud.endpoint, cloud.keys, action, given, **changed)
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.post(f"http://{cloud.endpoint}/", params=given, headers=headers)

"""One call of Alibaba Cloud's API through the official SDK: its turn, its time limit, its few retries, our errors.

ECS has its own client (`alibabacloud_ecs20140526`), ECI goes by the generic call of `alibabacloud_tea_openapi`. Both
are asked and answered in the API's own words, as plain dictionaries.

The SDK's `…_async` methods open a session for each call, and over HTTPS load all certificates for it, on the event
loop (20 to 50 ms); its other methods keep connections and take 1 ms. So those are called, in threads.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from springtide.drivers.alibaba_errors import DRY_RUN_PASSED, cloud_error
from springtide.drivers.alibaba_settings import RATES, USUAL_RATE, AccessKeys, AlibabaSettings
from springtide.drivers.api_rates import WINDOW_MS, ApiRates
from springtide.errors import CloudError, CloudRefused, CloudThrottled, CloudUnavailable
from springtide.ports import Clock

TRIES = 3
"""How often a call is sent that gets no answer or meets a fault of theirs; one that is throttled is sent once."""

PAUSE_S = 0.5
"""The pause after the first try; it doubles."""

THREADS = 8
"""Calls that are under way at once; others wait for a thread."""

ECI_VERSION = "2018-08-08"
ECI_WINDOW_MS = 1_000
"""ECI counts by a bucket that fills every second, not by the minute."""

Answer = dict[str, Any]
"""The body of an answer, as the API documents it."""


class AlibabaCalls:
    """The two clients of one account in one region, opened at the first call.

    All requests made here may be repeated: they carry a client token, or name what they change.
    """

    def __init__(self, settings: AlibabaSettings, clock: Clock, keys: AccessKeys | None = None) -> None:
        """Without keys, the SDK's chain finds them: environment, profile files, the machine's role."""
        self._settings = settings
        self._clock = clock
        self._keys = keys
        self._ecs: Any = None
        self._ecs_models: Any = None
        self._eci: Any = None
        self._opening = asyncio.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="alibaba")
        self.rates = ApiRates(clock, {**RATES, **settings.rates}, USUAL_RATE)
        self.sent: Counter[str] = Counter()
        """Calls that were sent, by API, those that failed included."""
        self.throttled: Counter[str] = Counter()
        """Throttle errors that came back, by API."""

    async def ecs(self, api: str, query: Mapping[str, object]) -> Answer:
        """Call ECS. `query` has the names of the API; the region is added. Raises CloudError."""
        client = await self._ecs_client()
        request = getattr(self._ecs_models, f"{api}Request")().from_map({"RegionId": self._settings.region, **query})
        send = getattr(client, f"{_snake(api)}_with_options")

        def call() -> Answer:
            response = send(request, self._options())
            return response.body.to_map() if response.body is not None else {}

        return await self._call(api, call, WINDOW_MS)

    async def eci(self, api: str, query: Mapping[str, object]) -> Answer:
        """Call ECI, in the same way. Raises CloudError."""
        client = await self._eci_client()
        from alibabacloud_tea_openapi import utils_models  # noqa: PLC0415 - the SDK is loaded when it is used
        from alibabacloud_tea_openapi.utils import Utils  # noqa: PLC0415 - the SDK is loaded when it is used

        request = utils_models.OpenApiRequest(query=Utils.query({"RegionId": self._settings.region, **query}))
        params = utils_models.Params(
            action=api,
            version=ECI_VERSION,
            protocol="HTTPS",
            pathname="/",
            method="POST",
            auth_type="AK",
            style="RPC",
            req_body_type="formData",
            body_type="json",
        )

        def call() -> Answer:
            return dict(client.call_api(params, request, self._options())["body"])

        return await self._call(api, call, ECI_WINDOW_MS)

    def close(self) -> None:
        """End the threads and the connections; calls under way are left to end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ecs is None and self._eci is None:
            return
        from darabonba.core import DaraCore  # noqa: PLC0415 - the SDK is loaded when it is used

        # The SDK keeps its sessions in a dictionary for good, and has no call that closes them.
        sessions = DaraCore._sessions  # noqa: SLF001 - there is no public way
        for client in (self._ecs, self._eci):
            host = client._endpoint if client is not None else ""  # noqa: SLF001 - there is no public way
            for key in [key for key in sessions if host and f"//{host}:" in key]:
                sessions.pop(key).close()

    async def _call(self, api: str, call: Callable[[], Answer], window_ms: int) -> Answer:
        for attempt in range(1, TRIES + 1):
            await self.rates.take(api)
            self.sent[api] += 1
            try:
                async with self._clock.timeout(self._settings.call_s):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, call)
            except Exception as error:  # noqa: BLE001 - the SDK lets through whatever its libraries raise
                if getattr(error, "code", None) in DRY_RUN_PASSED:
                    return {}
                failure = self._failure(api, error, window_ms)
            if isinstance(failure, CloudThrottled) or not isinstance(failure, CloudUnavailable) or attempt == TRIES:
                # Not chained: the SDK's error holds the request, and with it what was signed.
                raise failure from None
            await self._clock.sleep(PAUSE_S * 2 ** (attempt - 1))
        raise CloudUnavailable(f"{api}: not sent; repeat it")  # not reached: the last try returns or raises

    def _failure(self, api: str, error: Exception, window_ms: int) -> CloudError:
        code = getattr(error, "code", None)
        status = getattr(error, "status_code", None)
        if isinstance(error, TimeoutError):
            return CloudUnavailable(
                f"{api}: no answer within {self._settings.call_s:g} s; repeat it with the same token"
            )
        inner = getattr(error, "inner_exception", error)
        if type(inner).__name__ == "CredentialException":
            return CloudRefused(
                f"{api}: no access key was found; set ALIBABA_CLOUD_ACCESS_KEY_ID and …_SECRET, or a role"
            )
        if code is None or status is None:
            return CloudUnavailable(
                f"{api}: no usable answer ({type(inner).__name__}); check the network and repeat it"
            )
        retry_after_s = (getattr(error, "retry_after", None) or 0) / 1000
        failure = cloud_error(api, str(code), str(getattr(error, "message", "") or ""), int(status), retry_after_s)
        if isinstance(failure, CloudThrottled):
            self.throttled[api] += 1
            failure = CloudThrottled(str(failure), self.rates.close(api, retry_after_s, window_ms))
        return failure

    def _options(self) -> Any:  # noqa: ANN401 - the SDK has no types
        from darabonba.runtime import RuntimeOptions  # noqa: PLC0415 - the SDK is loaded when it is used

        milliseconds = round(self._settings.call_s * 1000)
        return RuntimeOptions(read_timeout=milliseconds, connect_timeout=milliseconds)

    async def _ecs_client(self) -> Any:  # noqa: ANN401 - the SDK has no types
        async with self._opening:
            if self._ecs is None:
                # 42,000 lines: loading them takes seconds, in which the loop has other things to do.
                client, self._ecs_models = await asyncio.to_thread(_load_ecs)
                self._ecs = client(self._config(self._settings.ecs_endpoint))
        return self._ecs

    async def _eci_client(self) -> Any:  # noqa: ANN401 - the SDK has no types
        async with self._opening:
            if self._eci is None:
                client = await asyncio.to_thread(_load_openapi)
                self._eci = client(
                    self._config(self._settings.eci_endpoint or f"eci.{self._settings.region}.aliyuncs.com")
                )
        return self._eci

    def _config(self, endpoint: str) -> Any:  # noqa: ANN401 - the SDK has no types
        from alibabacloud_credentials.client import Client as Credentials  # noqa: PLC0415 - loaded when it is used
        from alibabacloud_tea_openapi import utils_models  # noqa: PLC0415 - the SDK is loaded when it is used

        config = utils_models.Config(
            endpoint=endpoint or None, protocol=self._settings.protocol, region_id=self._settings.region
        )
        if self._keys is None:
            config.credential = Credentials()
        else:
            config.access_key_id, config.access_key_secret = self._keys.key_id, self._keys.secret
            config.security_token = self._keys.security_token or None
        return config


def _load_ecs() -> tuple[Any, Any]:
    from alibabacloud_ecs20140526 import models  # noqa: PLC0415 - 42,000 lines, loaded when they are used
    from alibabacloud_ecs20140526.client import Client  # noqa: PLC0415 - 42,000 lines, loaded when they are used

    return Client, models


def _load_openapi() -> Any:  # noqa: ANN401 - the SDK has no types
    from alibabacloud_tea_openapi.client import Client  # noqa: PLC0415 - the SDK is loaded when it is used

    return Client


def _snake(api: str) -> str:
    """`RunInstances` as the SDK's methods spell it: `run_instances`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", api).lower()

"""The sensor port on Prometheus: one instant query, one figure."""

import math

import httpx
import msgspec

from springtide.errors import SensorError

TIMEOUT_S = 2.0
BYTES_MAX = 1_000_000
"""Of an answer; a query that returns more has forgotten to aggregate."""


class _Series(msgspec.Struct, frozen=True):
    value: tuple[float, str]


class _Data(msgspec.Struct, frozen=True):
    resultType: str  # noqa: N815 - the name that Prometheus gives it
    result: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True):
    status: str
    data: _Data | None = None
    error: str = ""


class PrometheusSensor:
    """`ports.Sensor`: `query` (PromQL) at `url`, the root of a Prometheus, as its HTTP API v1 answers `/api/v1/query`.

    The query must give a scalar or a vector of exactly one series; a series that is not there is an error, not a zero.
    """

    def __init__(self, url: str, query: str) -> None:
        """Connect when it is first read."""
        self._query = query
        self._url = url
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S)

    async def read(self) -> float:
        """The figure now. Raises SensorError."""
        try:
            async with self._client.stream("GET", "/api/v1/query", params={"query": self._query}) as answer:
                body = await _bounded(answer)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SensorError(f"{self._url} does not answer ({error!r}); does a Prometheus run there?") from error
        try:
            said = msgspec.json.decode(body, type=_Answer)
            if said.status != "success" or said.data is None:
                raise SensorError(f"Prometheus refused {self._query!r}: {said.error}")
            return self._figure(said.data)
        except (msgspec.DecodeError, ValueError) as error:
            raise SensorError(
                f"{self._url} does not answer as a Prometheus does: {error}; check the address"
            ) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()

    def _figure(self, data: _Data) -> float:
        if data.resultType == "scalar":
            value = msgspec.json.decode(data.result, type=tuple[float, str])[1]
        else:
            series = msgspec.json.decode(data.result, type=list[_Series])
            if len(series) != 1:
                raise SensorError(
                    f"{self._query!r} gives {len(series)} series instead of one; aggregate it, as in sum(…)"
                )
            value = series[0].value[1]
        figure = float(value)
        if not math.isfinite(figure):
            raise SensorError(f"{self._query!r} is {value}; it must be a number")
        return figure


async def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > BYTES_MAX:
            raise SensorError(f"the answer is larger than {BYTES_MAX} bytes; aggregate the query, as in sum(…)")
    return body

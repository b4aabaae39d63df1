"""One Docker Engine over its API: every call has a time limit, and every failure says what was asked and what to do."""

import socket
from collections.abc import Awaitable, Collection, Mapping
from typing import Any, TypeVar

import aiodocker
import aiohttp

from springtide.errors import SpringtideError
from springtide.ports import Clock

CALL_S = 15.0
"""For what the engine answers from memory, unless it is told otherwise."""

WORK_S = 60.0
"""For what it has to do: create, start, delete."""

MOVE_S = 1_800.0
"""For what depends on an image's size."""

NOT_FOUND, CONFLICT, NOT_MODIFIED = 404, 409, 304

_NO_CONNECTION = 900  # the client's own, in place of an HTTP status
_T = TypeVar("_T")


class DockerEngine:
    """A connection to the engine at `url` (`unix:///PATH`, `tcp://HOST:PORT`, `https://…`); opened at the first call.

    What goes wrong is raised as `error`. TLS to a remote engine follows DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, as the
    docker command does.
    """

    def __init__(self, url: str, clock: Clock, error: type[SpringtideError], call_s: float = CALL_S) -> None:
        """Connect to nothing yet. `call_s` is for calls that name no limit."""
        self._call_s = call_s
        self.url = url
        self._clock = clock
        self._error = error
        self._client: aiodocker.Docker | None = None

    @property
    def docker(self) -> aiodocker.Docker:
        """The client; its calls go through `ask`."""
        if self._client is None:
            try:
                self._client = aiodocker.Docker(url=self.url)
            except (ValueError, OSError) as error:
                raise self._error(
                    f"{self.url} is no address of a Docker Engine ({error}); give unix:///PATH or tcp://HOST:PORT"
                ) from error
        return self._client

    async def ask(
        self, what: str, call: Awaitable[_T], seconds: float | None = None, accept: Collection[int] = ()
    ) -> _T | None:
        """The answer to a call; None for a status that is accepted. `what` names the call in errors."""
        seconds = self._call_s if seconds is None else seconds
        try:
            async with self._clock.timeout(seconds):
                return await call
        except aiodocker.DockerError as error:
            if error.status == _NO_CONNECTION:
                raise self._error(f"{what}: {error.message}; start the engine, or correct its address") from error
            if error.status not in accept:
                raise self._error(f"{what}: the Docker Engine at {self.url} refused: {error.message}") from error
            return None
        except TimeoutError as error:
            raise self._error(
                f"{what}: the Docker Engine at {self.url} did not answer within {seconds:g} s; see its log"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._error(
                f"{what}: the Docker Engine at {self.url} cannot be reached ({error}); start it, or correct the address"
            ) from error

    async def query(self, what: str, path: str, params: Mapping[str, str]) -> Any:  # noqa: ANN401 - whatever JSON it is
        """GET a path of the API that the client has no method for."""
        client = self.docker
        return await self.ask(what, client._query_json(path, params=dict(params)), accept=(NOT_FOUND,))  # noqa: SLF001 - there is no other way to it

    async def reaches_containers(self) -> bool:
        """Whether this machine has the engine's bridge: then containers answer at their own addresses."""
        client = self.docker

        async def gateway() -> str:
            network = await (await client.networks.get("bridge")).show()
            configs = (network.get("IPAM") or {}).get("Config") or [{}]
            return str(configs[0].get("Gateway") or "")

        address = await self.ask("its bridge", gateway(), accept=(NOT_FOUND,))
        return address is not None and address != "" and _is_ours(address)

    async def close(self) -> None:
        """Close connections."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()


def _is_ours(address: str) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True

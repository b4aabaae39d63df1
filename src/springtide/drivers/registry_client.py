"""A client of one image registry (Docker Registry HTTP API V2): blobs in streams, manifests, tags, all verified."""

import contextlib
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, cast
from urllib.parse import urljoin

import httpx
import msgspec

from springtide.drivers.registry_manifest import MANIFEST_BYTES_MAX, MANIFEST_TYPES, Manifest
from springtide.errors import ImageError, ImageUnavailable

CONNECTIONS_MAX = 16
CONNECT_S_MAX = 5.0
SILENT_S_MAX = 30.0
"""How long a registry may send or take nothing before the call counts as unanswered."""

PAGE = 100
NAMES_MAX = 10_000
"""Names or tags that one listing reads at most."""

_CHUNK = 256 * 1024
_NOT_FOUND = 404
_ACCEPT = ", ".join(MANIFEST_TYPES)


class RegistryClient:
    """One registry at `HOST:PORT` (plain HTTP) or at a URL. Raises ImageUnavailable when it does not answer."""

    def __init__(self, address: str) -> None:
        """No connection is made before the first call."""
        self.url = address if "://" in address else f"http://{address}"
        timeout = httpx.Timeout(SILENT_S_MAX, connect=CONNECT_S_MAX, pool=None)
        limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
        # The machine's proxy settings are for the world outside; a registry is on a network of ours.
        self._http = httpx.AsyncClient(base_url=self.url, timeout=timeout, limits=limits, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def digest(self, name: str, version: str) -> str | None:
        """The digest behind a tag (or digest); None when the registry does not have it."""
        answer = await self._call("HEAD", f"/v2/{name}/manifests/{version}", headers={"accept": _ACCEPT})
        return None if answer is None else answer.headers.get("docker-content-digest")

    async def manifest(self, name: str, version: str) -> Manifest | None:
        """The manifest with this tag or digest; None when the registry does not have it.

        Raises ImageError when it is not what its digest says.
        """
        answer = await self._call("GET", f"/v2/{name}/manifests/{version}", headers={"accept": _ACCEPT})
        if answer is None:
            return None
        if len(answer.content) > MANIFEST_BYTES_MAX:
            raise ImageError(f"the manifest of {name} at {self.url} is longer than {MANIFEST_BYTES_MAX} bytes")
        found = Manifest.read(answer.content, answer.headers.get("content-type", ""))
        asked = version if version.startswith("sha256:") else answer.headers.get("docker-content-digest", found.digest)
        if found.digest != asked:
            raise ImageError(
                f"the manifest {name} {version} at {self.url} is damaged: its digest is {found.digest}, not {asked}; "
                "push the image again"
            )
        return found

    async def put_manifest(self, name: str, tag: str, manifest: Manifest) -> bool:
        """Name an image whose blobs are all there. False when some are not: a collection deleted them meanwhile."""
        try:
            await self._call(
                "PUT",
                f"/v2/{name}/manifests/{tag}",
                headers={"content-type": manifest.media_type},
                content=manifest.body,
            )
        except _BlobUnknown:
            return False
        return True

    async def delete_manifest(self, name: str, digest: str) -> None:
        """Delete an image with all its tags; what it consists of goes with the next collection of garbage."""
        await self._call("DELETE", f"/v2/{name}/manifests/{digest}")

    async def blob_size(self, name: str, digest: str) -> int | None:
        """The bytes of a blob; None when this repository does not have it."""
        answer = await self._call("HEAD", f"/v2/{name}/blobs/{digest}")
        return None if answer is None else int(answer.headers.get("content-length", -1))

    async def blob(self, name: str, digest: str, size: int) -> AsyncGenerator[bytes, None]:
        """A blob's bytes. Before the last of them, raises ImageError when they are not what the digest says.

        So a reader that stops on the error has never had the whole of a wrong blob.
        """
        wrong = f"layer {digest} of {name} at {self.url} is damaged: delete the image there and push it again"
        request = self._http.build_request("GET", f"/v2/{name}/blobs/{digest}", headers={"accept-encoding": "identity"})
        hashed, seen, last = hashlib.sha256(), 0, b""
        with self._errors(f"GET of {digest}"):
            answer = await self._http.send(request, stream=True)
            try:
                await self._check(answer)
                async for chunk in answer.aiter_raw(_CHUNK):
                    hashed.update(chunk)
                    seen += len(chunk)
                    if seen > size:
                        raise ImageError(wrong)
                    if last:
                        yield last
                    last = chunk
            finally:
                await answer.aclose()
        if seen != size or f"sha256:{hashed.hexdigest()}" != digest:
            raise ImageError(wrong)
        if last:
            yield last

    async def begin_upload(self, name: str, digest: str, lender: str = "") -> str | None:
        """Where to upload a blob to. None when it could be taken over from another repository, `lender`."""
        params = {"mount": digest, "from": lender} if lender else {}
        answer = await self._call("POST", f"/v2/{name}/blobs/uploads/", params=params)
        if answer is None:
            raise ImageError(f"{self.url} does not take uploads: is it an image registry?")
        if answer.status_code == httpx.codes.CREATED:
            return None
        return urljoin(self.url, answer.headers["location"])

    async def upload(self, location: str, digest: str, size: int, chunks: AsyncIterator[bytes] | bytes) -> None:
        """Send a blob whole; the registry keeps it when it has the digest.

        An upload that was cut off cannot go on where it was: the engine has no consistent state of it then. Begin anew.
        """
        url = httpx.URL(location).copy_merge_params({"digest": digest})
        headers = {"content-type": "application/octet-stream", "content-length": str(size)}
        await self._call("PUT", str(url), headers=headers, content=chunks)

    async def cancel_upload(self, location: str) -> None:
        """Let the registry forget what it has of an upload, if it can be told; it does by itself after a day."""
        with contextlib.suppress(ImageError):
            await self._call("DELETE", location)

    async def names(self) -> list[str]:
        """The repositories, those included that lost all their tags."""
        return [name async for page in self._pages("/v2/_catalog") for name in page["repositories"] or ()]

    async def tags(self, name: str) -> list[str]:
        """The tags of a repository."""
        return [tag async for page in self._pages(f"/v2/{name}/tags/list") for tag in page["tags"] or ()]

    async def _pages(self, path: str) -> AsyncIterator[dict[str, Any]]:
        url: str | None = f"{path}?n={PAGE}"
        for _ in range(NAMES_MAX // PAGE):
            answer = await self._call("GET", url) if url else None
            if answer is None:
                return
            try:
                yield msgspec.json.decode(answer.content, type=dict[str, Any])
            except msgspec.DecodeError as error:
                raise ImageError(f"{self.url} is not an image registry: {error}") from error
            url = answer.links.get("next", {}).get("url")
        if url:
            raise ImageError(f"{self.url} lists more than {NAMES_MAX} names: collect what is not needed")

    async def _call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | bytes | None = None,
    ) -> httpx.Response | None:
        """The answer, or None for 404."""
        with self._errors(f"{method} {url}"):
            answer = await self._http.request(
                method, url, headers=dict(headers or {}), params=params or None, content=content
            )
        if answer.status_code == _NOT_FOUND and method != "PUT":
            return None
        await self._check(answer)
        return answer

    @contextlib.contextmanager
    def _errors(self, what: str) -> Any:  # noqa: ANN401 - the type of a context manager says less than the decorator
        try:
            yield
        except (httpx.TransportError, httpx.StreamError) as error:
            why = str(error) or type(error).__name__
            raise ImageUnavailable(f"the registry {self.url} did not answer ({what}: {why}); repeat it") from error

    async def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        with self._errors("the reason of a refusal"):
            body = await answer.aread()
        raise _refusal(self.url, answer.status_code, body)


class _BlobUnknown(ImageError):
    """A manifest names a blob that the registry does not have."""


def _refusal(url: str, status: int, body: bytes) -> ImageError:
    """What a registry's refusal means, and what to do."""
    text = body[:500].decode(errors="replace")
    codes = _codes(body)
    if {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"} & codes:
        return _BlobUnknown(f"{url} lacks a layer of the image: repeat it")
    if _disk_is_full(text):
        return ImageError(
            f"the disk of the registry {url} is full; what it has stays available: collect images "
            "(`springtide image gc`) or give it more room, then repeat it"
        )
    if status == httpx.codes.METHOD_NOT_ALLOWED:
        return ImageUnavailable(
            f"the registry {url} takes no changes now: its garbage is being collected (repeat it), or it passes pulls "
            "through and never does"
        )
    if "BLOB_UPLOAD_INVALID" in codes or "BLOB_UPLOAD_UNKNOWN" in codes or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return ImageUnavailable(f"the registry {url} failed ({status} {text}); repeat it")
    return ImageError(f"the registry {url} refused it: {status} {text}")


def _codes(body: bytes) -> set[str]:
    try:
        errors = msgspec.json.decode(body, type=dict[str, Any]).get("errors") or ()
        return {cast("str", error.get("code", "")) for error in errors}
    except (msgspec.DecodeError, AttributeError):
        return set()


def _disk_is_full(text: str) -> bool:
    """ENOSPC as the engine passes it on: in words, or as the number of the error."""
    return "no space left" in text or '"Err":28' in text

"""Image manifests: what an image consists of, as registries keep it (Docker schema 2 and OCI), and its digest."""

import hashlib
import platform
from typing import Any

import msgspec

from springtide.errors import ImageError

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
INDEXES = ("application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.oci.image.index.v1+json")
MANIFEST_TYPES = (MANIFEST, "application/vnd.oci.image.manifest.v1+json", *INDEXES)

MANIFEST_BYTES_MAX = 4 * 1024 * 1024
"""What registries accept at most (the engine's own limit of a payload)."""

LAYERS_MAX = 512
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Blob(msgspec.Struct, frozen=True):
    """A part of an image: its digest and its bytes as they are transferred."""

    digest: str
    size: int


class Platform(msgspec.Struct, frozen=True):
    """A machine type, as Docker names it."""

    architecture: str
    os: str = "linux"


class Manifest(msgspec.Struct, frozen=True):
    """An image in a registry, or (`images` is not empty) a list of one image for each machine type.

    `body` is exactly what was read: the digest is over it.
    """

    body: bytes
    media_type: str
    digest: str
    blobs: tuple[Blob, ...] = ()
    images: tuple[tuple[Platform, str], ...] = ()

    @property
    def size_bytes(self) -> int:
        """What a pull of the whole image transfers."""
        return sum({blob.digest: blob.size for blob in self.blobs}.values())

    @classmethod
    def read(cls, body: bytes, media_type: str) -> "Manifest":
        """Raises ImageError for what is no manifest of these types."""
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
            kind = document.get("mediaType") or media_type.partition(";")[0].strip()
            if kind in INDEXES:
                images = tuple((_platform(each), str(each["digest"])) for each in document["manifests"])
                return cls(body, kind, digest_of(body), images=images)
            if kind not in MANIFEST_TYPES:
                raise ImageError(f"a manifest of type {kind!r} cannot be handled: push the image with a newer Docker")
            parts = [document["config"], *document["layers"]]
            if len(parts) > LAYERS_MAX:
                raise ImageError(f"an image of {len(parts)} layers is not handled; at most {LAYERS_MAX}")
            unique = {each["digest"]: Blob(str(each["digest"]), int(each["size"])) for each in parts}
            return cls(body, kind, digest_of(body), blobs=tuple(unique.values()))
        except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ImageError(f"a registry's answer is no image manifest: {error!r}") from error

    def image_for(self, wanted: Platform) -> str:
        """The digest of the image for a machine type. Raises ImageError when the list has none."""
        for offered, digest in self.images:
            if offered == wanted:
                return digest
        offers = ", ".join(sorted(f"{each.os}/{each.architecture}" for each, _ in self.images))
        raise ImageError(f"there is no image for {wanted.os}/{wanted.architecture}, only for {offers}: build one")


def compose(config: Blob, layers: list[Blob]) -> Manifest:
    """The manifest of an image whose layers are gzipped tars."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "size": config.size, "digest": config.digest},
        "layers": [{"mediaType": LAYER_GZIP, "size": each.size, "digest": each.digest} for each in layers],
    }
    return Manifest.read(msgspec.json.encode(document), MANIFEST)


def digest_of(data: bytes) -> str:
    """`sha256:` and the hash in hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def this_machine() -> Platform:
    """The machine type that we run on."""
    return Platform(_ARCHITECTURES.get(platform.machine(), platform.machine()))


def _platform(entry: dict[str, Any]) -> Platform:
    of = entry.get("platform") or {}
    return Platform(str(of.get("architecture", "")), str(of.get("os", "linux")))

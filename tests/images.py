"""Images for tests: of random layers, or with a shell that runs; pushed straight into a registry."""

import gzip
import hashlib
import io
import random
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from springtide.drivers.registry_client import RegistryClient
from springtide.drivers.registry_manifest import Blob, compose, digest_of
from springtide.model import ImageName

SAYS = "ready"


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no compression makes fewer."""
    return random.Random(seed).randbytes(size)


async def push_blobs(address: str, reference: str, layers: Sequence[bytes], config: bytes = b"{}") -> str:
    """Push layers as they are; the image's digest."""
    name = ImageName.parse(reference)
    registry = RegistryClient(address)
    try:
        blobs = []
        for content in (config, *layers):
            blobs.append(Blob(digest_of(content), len(content)))
            location = await registry.begin_upload(name.name, blobs[-1].digest)
            assert location is not None
            await registry.upload(location, blobs[-1].digest, len(content), content)
        manifest = compose(blobs[0], blobs[1:])
        assert await registry.put_manifest(name.name, name.tag, manifest)
    finally:
        await registry.close()
    return manifest.digest


def runnable(size: int, layers: int = 4, seed: int = 0) -> tuple[list[bytes], bytes]:
    """An image that says SAYS and ends, with `size` bytes of noise in it: its gzipped layers and its configuration."""
    tars = [_shell()]
    tars += [_tar({f"noise/{seed}-{at}": noise(size // layers, seed * 1000 + at)}) for at in range(layers)]
    config = {
        "architecture": "amd64",
        "created": "2026-01-01T00:00:00Z",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh", "-c", f"echo {SAYS}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]},
    }
    # Level 1 stores what cannot be made smaller, as Docker's own pushes do.
    return [gzip.compress(tar, 1, mtime=0) for tar in tars], msgspec.json.encode(config)


def _shell() -> bytes:
    """A root with /bin/sh and the libraries it names."""
    shell = Path(shutil.which("dash") or "/bin/sh").resolve()
    listed = subprocess.run(["ldd", str(shell)], capture_output=True, check=True, text=True).stdout
    libraries = [word for word in listed.split() if word.startswith("/")]
    return _tar({"bin/sh": shell.read_bytes()} | {path[1:]: Path(path).read_bytes() for path in libraries})


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def archive(path: Path, layers: Sequence[bytes]) -> Path:
    """A `docker save` archive whose layers are exactly these bytes."""
    contents = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": contents}}
    manifest = [
        {"Config": "config.json", "RepoTags": ["any:1"], "Layers": [f"{at}/layer.tar" for at in range(len(layers))]}
    ]
    files = {"config.json": msgspec.json.encode(config), "manifest.json": msgspec.json.encode(manifest)}
    path.write_bytes(_tar(files | {f"{at}/layer.tar": layer for at, layer in enumerate(layers)}))
    return path

"""Layers of container images: the same files make the same tar, so that what has not changed is not sent again."""

import hashlib
import io
import json
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from springtide.errors import ImageError

FILES_MAX = 200_000
"""Entries of one layer."""

LAYER_BYTES_MAX = 8 * 1024**3
CACHED_MAX = 24
"""Layers that a cache folder keeps; the ones used longest ago go."""

_FORM = 1
"""Part of every key: another way to write layers is another layer."""

_SKIPPED = {".git", "__pycache__", ".venv"}


class Entry(msgspec.Struct, frozen=True):
    """A file of a layer: where it goes, and a file here, its bytes, or a symbolic link's target."""

    path: str
    source: Path | None = None
    data: bytes = b""
    link: str = ""
    executable: bool = False
    folder_mode: int = 0


class Layer(msgspec.Struct, frozen=True):
    """A layer as a tar on disk. `digest` is `sha256:…` of it."""

    name: str
    path: Path
    digest: str
    size_bytes: int


Derive = Callable[[Sequence[Entry], Path], Sequence[Entry]]


def write_layer(name: str, entries: Sequence[Entry], cache: Path, derive: Derive | None = None) -> Layer:
    """The tar of these entries, from the cache when nothing about them has changed. Raises ImageError.

    Owned by root, mode 0644 or 0755, without times: who builds it and when makes no difference. `derive` makes
    further entries from these, with a folder for its files, when the tar has to be written.
    """
    by_path = {entry.path.strip("/"): entry for entry in entries}
    if len(by_path) > FILES_MAX:
        raise ImageError(f"layer {name} has more than {FILES_MAX} files; leave some out")
    try:
        target = cache / f"{name}-{_key(by_path)}.tar"
        if target.exists():
            os.utime(target)
        else:
            with tempfile.TemporaryDirectory(prefix="springtide-layer-") as folder:
                more = derive(entries, Path(folder)) if derive else []
                _write_tar({**{entry.path.strip("/"): entry for entry in more}, **by_path}, target)
            _trim(cache)
        return Layer(name, target, _digest(target), target.stat().st_size)
    except OSError as error:
        raise ImageError(f"layer {name} cannot be written: {error}; make room, or see that it can be read") from error


def folder_entries(
    folder: Path, into: str, *, keep: Callable[[Path], bool] = lambda _: True, follow: bool = False
) -> Iterator[Entry]:
    """All files of a folder but `.git`, `.venv` and compiled Python. Raises ImageError for what no image can hold.

    Links that leave the folder are refused, as they may show what was not meant to be shown; with `follow` the files
    they lead to are taken.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if _SKIPPED & set(inside.parts) or path.suffix == ".pyc" or not keep(inside):
            continue
        where = f"{into}/{inside}".strip("/")
        if path.is_symlink() and not (follow and path.is_file()):
            yield Entry(where, link=_inner_link(path, folder))
        elif path.is_file():
            yield Entry(where, source=path.resolve(), executable=bool(path.stat().st_mode & stat.S_IXUSR))
        elif not path.is_dir():
            raise ImageError(f"{path} is neither a file nor a folder; take it out of {folder}")


def _inner_link(path: Path, folder: Path) -> str:
    link = os.readlink(path)  # noqa: PTH115 - the text of the link, whatever it is
    if Path(link).is_absolute() or not (path.parent / link).resolve().is_relative_to(folder.resolve()):
        raise ImageError(f"{path} is a link that leaves {folder}; put the file itself there")
    return link


def archive(layers: Sequence[Layer], config: bytes, reference: str, known: int, target: Path) -> None:
    """Write what `docker load` reads. The lowest `known` layers are only named: the engine has them.

    The image specification, version 1.2 ("combined image JSON + filesystem changeset format").
    """
    names = [f"{layer.digest.partition(':')[2]}/layer.tar" for layer in layers]
    manifest = [{"Config": f"{image_id(config)}.json", "RepoTags": [reference], "Layers": names}]
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, layer in list(zip(names, layers, strict=True))[known:]:
            tar.add(layer.path, name, recursive=False)
        _add_bytes(tar, f"{image_id(config)}.json", config)
        _add_bytes(tar, "manifest.json", json.dumps(manifest).encode())


def write_context(folder: Path, target: Path) -> None:
    """The tar of a folder for an engine to build from. Raises ImageError."""
    _write_tar({entry.path: entry for entry in folder_entries(folder, "")}, target)


def image_id(config: bytes) -> str:
    """What an engine calls an image: the digest of its configuration, without `sha256:`."""
    return hashlib.sha256(config).hexdigest()


def image_config(layers: Sequence[Layer], config: Mapping[str, object], architecture: str) -> bytes:
    """The configuration of an image of these layers. The same layers and settings make the same image."""
    born = "1970-01-01T00:00:00Z"
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": born,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
            "history": [{"created": born, "created_by": f"springtide: {layer.name}"} for layer in layers],
        },
        sort_keys=True,
    ).encode()


def _key(entries: Mapping[str, Entry]) -> str:
    digest = hashlib.sha256(f"{_FORM}".encode())
    for path in sorted(entries):
        entry = entries[path]
        about = entry.source.stat() if entry.source else None
        seen = (about.st_size, about.st_mtime_ns) if about else hashlib.sha256(entry.data).hexdigest()
        digest.update(repr((path, seen, entry.link, entry.executable, entry.folder_mode)).encode())
    return digest.hexdigest()[:32]


def _write_tar(entries: Mapping[str, Entry], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_suffix(f".{os.getpid()}.part")
    written = 0
    try:
        with tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as tar:
            for path in sorted(_with_folders(entries)):
                entry = entries.get(path)
                if entry is None or entry.folder_mode:
                    _add_folder(tar, path, entry.folder_mode if entry else 0o755)
                else:
                    written += _add(tar, path, entry)
                if written > LAYER_BYTES_MAX:
                    raise ImageError(f"{target.name} is larger than {LAYER_BYTES_MAX} bytes; leave something out")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _with_folders(entries: Mapping[str, Entry]) -> set[str]:
    """The paths and every folder above them."""
    paths = set(entries)
    for path in entries:
        paths.update(str(parent) for parent in Path(path).parents if str(parent) != ".")
    return paths


def _add(tar: tarfile.TarFile, path: str, entry: Entry) -> int:
    info = tarfile.TarInfo(path)
    info.mode = 0o755 if entry.executable else 0o644
    if entry.link:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
        return 0
    if entry.source is None:
        info.size = len(entry.data)
        tar.addfile(info, io.BytesIO(entry.data))
        return info.size
    with entry.source.open("rb") as file:
        info.size = os.fstat(file.fileno()).st_size
        tar.addfile(info, file)
    return info.size


def _add_folder(tar: tarfile.TarFile, path: str, mode: int) -> None:
    info = tarfile.TarInfo(path)
    info.type, info.mode = tarfile.DIRTYPE, mode
    tar.addfile(info)


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _trim(cache: Path) -> None:
    tars = sorted(cache.glob("*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in tars[CACHED_MAX:]:
        path.unlink(missing_ok=True)

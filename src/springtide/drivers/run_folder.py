"""Folders of a run under the temporary directory, marked with who made them: what a killed run left can be told.

A run that ends in any other way than `kill -9` removes its own. The mark has the pid and its start time: a folder is
swept only when that very process is gone, the folder is ours, and no process works in it.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from springtide.drivers.pids import started_ticks
from springtide.drivers.private_file import write_private

PREFIX = "springtide-"
MARK = "owner.json"
SWEPT_MAX = 100
"""Folders that one sweep removes."""


class _Owner(msgspec.Struct, frozen=True):
    """`pids` is the namespace in which the pid counts: a folder may be shared with another container."""

    pid: int
    started_ticks: int
    pids: str


def make_run_folder(kind: str = "") -> Path:
    """A new private folder, marked as this process's."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}"))
    write_private(folder / MARK, _Owner(os.getpid(), started_ticks(os.getpid()), _pid_namespace()))
    return folder


def sweep(forget: Callable[[Path], None]) -> list[Path]:
    """Remove what runs left that were killed; what was removed. Whatever is not certainly theirs stays.

    `forget` is called with each folder before it goes, for what it has outside of itself.
    """
    swept: list[Path] = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        if len(swept) < SWEPT_MAX and _is_orphan(folder):
            forget(folder)
            release(folder)
            swept.append(folder)
    return swept


def release(folder: Path) -> None:
    """Remove a run folder, with what is mounted right inside it. A folder that cannot be unmounted stays."""
    for inside in folder.iterdir():
        if inside.is_mount():
            done = subprocess.run(["umount", inside], check=False, capture_output=True)  # noqa: S607 - root's own PATH
            if done.returncode:
                return
    shutil.rmtree(folder, ignore_errors=True)


def _is_orphan(folder: Path) -> bool:
    try:
        # PostgreSQL's folder belongs to the user it runs as; the mark in it is always its maker's.
        if folder.is_symlink() or (folder / MARK).stat().st_uid != os.geteuid():
            return False
        owner = msgspec.json.decode((folder / MARK).read_bytes(), type=_Owner)
    except (OSError, msgspec.DecodeError):
        return False
    gone = owner.pids == _pid_namespace() and started_ticks(owner.pid) != owner.started_ticks
    return gone and not _in_use(folder)


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _in_use(folder: Path) -> bool:
    """Whether a process has its working directory there: an engine that outlived its parent by a moment."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder):
                    return True
    return False

"""CPU and memory limits of local processes by control groups (version 2 or 1), where we may make them.

Each replica gets a group of its own; its first process enters it before its program begins, so that nothing that it
starts is outside. Version 2: cgroups(7) and the kernel's admin-guide/cgroup-v2; version 1: the CFS quota and the
memory controller.
"""

import contextlib
import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from springtide.errors import ReplicaError

PERIOD_US = 100_000
"""The kernel's default period of CPU bandwidth control."""

QUOTA_US_MIN = 1_000
"""The smallest quota that the kernel takes: a hundredth of a core."""

STALE_MS = 3_600_000
"""An empty group this old was left by a run that was killed."""

_PREFIX = "springtide-"
_CPU, _MEMORY = "cpu", "memory"
_MB = 1024 * 1024


Group = dict[str, str]
"""A replica's group: by controller, its folder. Whoever adopts the replica may be in another group, and make others."""


class Mount(msgspec.Struct, frozen=True):
    """Where a controller's groups are made: `version` 1 or 2, and the folder that new ones go into."""

    version: int
    folder: Path


class Groups:
    """The groups of one runtime's replicas; `missing` says why there can be none (empty: there can).

    `owner` keeps the names of two runtimes on one machine apart.
    """

    def __init__(self, owner: str, now_ms: int) -> None:
        """Find out what is permitted, by making a group and removing it."""
        self._owner = hashlib.sha256(owner.encode()).hexdigest()[:8]
        self._mounts: dict[str, Mount] = {}
        self.missing = ""
        try:
            self._mounts = find_mounts()
            self._try_out()
        except OSError as error:
            self.missing = f"no control group can be made here ({error.strerror or error}): limits are not enforced"
            return
        self._sweep(now_ms)

    def make(self, replica_id: str, cores: float, memory_mb: int) -> Group:
        """A group with these limits (0: none); an empty one where nothing is to be enforced. Raises ReplicaError."""
        if self.missing or not (cores or memory_mb):
            return {}
        folders = self._folders(replica_id)
        group = {controller: str(folder) for controller, folder in folders.items()}
        try:
            for folder in folders.values():
                folder.mkdir(exist_ok=True)
            self._limit(folders, cores, memory_mb)
        except OSError as error:
            remove(group)
            raise ReplicaError(
                f"{replica_id} cannot be limited to {cores:g} cores and {memory_mb} MB: {error.strerror}; "
                "give other limits, or none"
            ) from error
        return group

    def _folders(self, replica_id: str) -> Mapping[str, Path]:
        name = f"{_PREFIX}{self._owner}-{replica_id}"
        return {controller: mount.folder / name for controller, mount in self._mounts.items()}

    def _limit(self, folders: Mapping[str, Path], cores: float, memory_mb: int) -> None:
        cpu, memory = folders[_CPU], folders[_MEMORY]
        quota = max(QUOTA_US_MIN, round(cores * PERIOD_US)) if cores else 0
        if self._mounts[_CPU].version == 2:  # noqa: PLR2004 - the version
            _write(cpu / "cpu.max", f"{quota or 'max'} {PERIOD_US}")
        else:
            _write(cpu / "cpu.cfs_period_us", str(PERIOD_US))
            _write(cpu / "cpu.cfs_quota_us", str(quota or -1))
        if self._mounts[_MEMORY].version == 2:  # noqa: PLR2004 - the version
            _write(memory / "memory.max", str(memory_mb * _MB) if memory_mb else "max")
            _write_where_it_is(memory / "memory.swap.max", "0" if memory_mb else "max")
        elif memory_mb:
            _write(memory / "memory.limit_in_bytes", str(memory_mb * _MB))
            _write_where_it_is(memory / "memory.memsw.limit_in_bytes", str(memory_mb * _MB))

    def _try_out(self) -> None:
        """Make a group and let a process enter it: being allowed to make one is not being allowed to fill it."""
        folders = self._folders(f"try-{os.getpid()}").values()
        try:
            for folder in folders:
                folder.mkdir(exist_ok=True)
            self._limit(self._folders(f"try-{os.getpid()}"), 1.0, 64)
            _enter_and_end([folder / "cgroup.procs" for folder in folders])
        finally:
            for folder in folders:
                _remove(folder)

    def _sweep(self, now_ms: int) -> None:
        for parent in {mount.folder for mount in self._mounts.values()}:
            for folder in parent.glob(f"{_PREFIX}*"):
                with contextlib.suppress(OSError):
                    if folder.stat().st_mtime * 1000 < now_ms - STALE_MS and not _pids(folder):
                        _remove(folder)


def doors(group: Group) -> list[Path]:
    """The files that a process writes `0` to, to enter the group."""
    return [Path(folder) / "cgroup.procs" for folder in sorted(set(group.values()))]


def out_of_memory(group: Group) -> bool:
    """Whether the kernel has killed a process of it for its memory limit."""
    for name in ("memory.events", "memory.oom_control"):  # of version 2, of version 1
        with contextlib.suppress(OSError, KeyError):
            text = (Path(group[_MEMORY]) / name).read_text()
            return int(dict(line.split() for line in text.splitlines()).get("oom_kill", "0")) > 0
    return False


def pids(group: Group) -> frozenset[int]:
    """The processes in the group."""
    return frozenset(pid for folder in group.values() for pid in _pids(Path(folder)))


def kill(group: Group) -> None:
    """End whatever still runs in the group: what its main process had started."""
    for pid in pids(group):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def remove(group: Group) -> bool:
    """Remove the group; False while a process is still in it. One that is not there is no error."""
    left = [folder for folder in group.values() if not _remove(Path(folder))]
    return not left


def find_mounts(proc: Path = Path("/proc/self")) -> dict[str, Mount]:
    """The folders that groups for CPU and memory can be made in.

    Version 1: inside the group we are in. Version 2: in the nearest group above us that hands both controllers on (a
    group with processes of its own cannot). Raises OSError when there are none.
    """
    places = _mount_points(proc)
    ours = _memberships(proc)
    found = {}
    for controller in (_CPU, _MEMORY):
        if controller in places and controller in ours:
            found[controller] = Mount(1, _inside(places[controller], ours[controller]))
    if not found and "" in places and "" in ours:
        folder = _handing_on(places[""][0], _inside(places[""], ours[""]))
        found = {_CPU: Mount(2, folder), _MEMORY: Mount(2, folder)}
    if len(found) != 2:  # noqa: PLR2004 - CPU and memory
        raise OSError("the controllers for CPU and memory are not mounted")
    return found


def _inside(place: tuple[Path, str], ours: str) -> Path:
    """Our group's folder; a container may see its own part of the hierarchy only, mounted as if it were all."""
    point, root = place
    return point / ours.removeprefix(root).lstrip("/")


def _handing_on(root: Path, ours: Path) -> Path:
    for folder in _upwards(root, ours):
        with contextlib.suppress(OSError):
            handed = (folder / "cgroup.subtree_control").read_text().split()
            if {_CPU, _MEMORY} <= set(handed) and os.access(folder, os.W_OK):
                return folder
    try:
        _write(ours / "cgroup.subtree_control", "+cpu +memory")  # the kernel refuses it but for the topmost group
    except OSError as error:
        raise OSError("no group that we may write to hands CPU and memory on; have one delegated") from error
    return ours


def _upwards(root: Path, folder: Path) -> Iterator[Path]:
    while folder != root and root in folder.parents:
        yield folder
        folder = folder.parent
    yield root


def _mount_points(proc: Path) -> dict[str, tuple[Path, str]]:
    """By controller of version 1, and "" for version 2: the mount, and what of the hierarchy it shows.

    proc_pid_mountinfo(5).
    """
    points: dict[str, tuple[Path, str]] = {}
    for line in (proc / "mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        place = Path(fields.split()[4]), fields.split()[3]
        if kind == "cgroup2":
            points.setdefault("", place)
        elif kind == "cgroup":
            for option in options.split()[-1].split(","):
                points.setdefault(option, place)
    return points


def _memberships(proc: Path) -> dict[str, str]:
    """By controller of version 1, and "" for version 2: the group we are in."""
    groups = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _enter_and_end(files: Sequence[Path]) -> None:
    """A process of ours enters and ends. Raises OSError when it may not."""
    script = 'for file; do echo 0 >"$file" || exit 1; done'
    done = subprocess.run(["/bin/sh", "-c", script, "sh", *files], check=False, capture_output=True)
    if done.returncode:
        raise OSError("a process may not enter a group that we make")


def _pids(folder: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    return []


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)


def _write_where_it_is(path: Path, text: str) -> None:
    """Swap is counted only where the kernel was told to."""
    if path.exists():
        _write(path, text)


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

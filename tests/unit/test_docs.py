"""The documentation says what the code says."""

import ast
import re
from pathlib import Path

import msgspec

from springtide import config

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "springtide"
UNLISTED = {"__init__.py", "__main__.py"}


def first_paragraph(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "or")


def test_the_map_lists_every_module_with_its_own_words() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = dict(re.findall(r"^\| `([\w/]+\.py)` \| (.*) \|$", page, flags=re.MULTILINE))
    modules = {
        str(path.relative_to(SOURCE)): first_paragraph(path)
        for path in SOURCE.rglob("*.py")
        if path.name not in UNLISTED
    }
    assert listed.keys() >= modules.keys(), sorted(modules.keys() - listed.keys())
    assert {name: listed[name] for name in modules} == modules


def test_every_setting_is_explained_in_the_operations_guide() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    tables = (
        config.ZoneSettings,
        config.CounterSettings,
        config.InventorySettings,
        config.FleetSettings,
        config.ImagesSettings,
        config.CloudSettings,
        config.MachineSettings,
        config.LineSettings,
        config.ServiceSettings,
        config.HealthSettings,
        config.SignalSettings,
        config.SaleSettings,
        config.SkuSettings,
        config.CalendarSettings,
        config.CrowdSettings,
    )
    missing = [
        f"{table.__name__}.{field.name}"
        for table in tables
        for field in msgspec.structs.fields(table)
        if f"| `{field.name}` |" not in page
    ]
    assert not missing


def test_decisions_are_numbered_without_a_gap() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


def test_links_of_the_readme_lead_somewhere() -> None:
    page = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / target).exists(), target

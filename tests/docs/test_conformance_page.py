"""The page with the verdict on all plugins, from outcomes made up here: it stays readable with any number of them."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from cnisdk.conformance import Kind, Outcome, Verdict, select
from cnisdk.conformance.report import Report
from cnisdk.conformance.subject import Subject

CASES = select(Kind.INTERFACE)
PLUGINS = [f"plugin-{number}" for number in range(20)]


@pytest.fixture(scope="module")
def publisher() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "publish_conformance.py"))


def report(name: str, **verdicts: Verdict) -> Report:
    """Return a report in which each case passed that is not named."""
    found = {key.replace("_", "-"): verdict for key, verdict in verdicts.items()}
    outcomes = [
        Outcome(case=each, verdict=found.get(each.id, Verdict.PASSED), expected="this", seen="that") for each in CASES
    ]
    return Report(Subject(path=name, kind=Kind.INTERFACE, conf={}), outcomes)


@pytest.fixture(scope="module")
def page(publisher: dict[str, Any]) -> str:
    go = {name: report(name) for name in PLUGINS}
    ours = {name: report(name) for name in [*PLUGINS, "patch"]}
    go["plugin-3"] = report("plugin-3", del_twice=Verdict.FAILED, check_after_add=Verdict.SKIPPED)
    go["plugin-7"] = report("plugin-7", del_twice=Verdict.FAILED)
    ours["plugin-7"] = report("plugin-7", del_twice=Verdict.ERROR)
    not_judged = {("Go's", "vlan"): "the kernel lacks it", ("our", "vlan"): "the kernel lacks it"}
    made: str = publisher["page"]({"Go's": go, "our": ours}, not_judged)
    return made


def table(page: str, head: str) -> dict[str, list[str]]:
    """Return the cells of a table, by those of its first column."""
    rows = page[page.index(head) :].split("\n\n", 1)[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return {row[0]: row[1:] for row in cells}


def test_no_table_is_wider_than_a_page(page: str, publisher: dict[str, Any]) -> None:
    tables = [line for line in page.splitlines() if line.startswith("|") and line not in publisher["HEAD"]]
    assert len(tables) > len(CASES)
    assert max(line.count("|") for line in tables) <= 7


def test_a_row_for_each_plugin_tells_how_many_cases_it_passes(page: str) -> None:
    rows, all_of_them = table(page, "| plugin |"), len(CASES)
    assert list(rows) == [*sorted([*PLUGINS, "vlan"]), "patch"]
    assert rows["plugin-0"] == ["interface", f"{all_of_them} of {all_of_them}", f"{all_of_them} of {all_of_them}"]
    assert rows["plugin-3"][1] == f"{all_of_them - 2} of {all_of_them - 1}"
    assert rows["patch"][1] == ""
    assert rows["vlan"] == ["", "not judged", "not judged"]
    assert "Not judged: Go's vlan (the kernel lacks it), our vlan (the kernel lacks it)." in page


def test_a_row_for_each_case_names_the_plugins_that_fail(page: str) -> None:
    rows = table(page, "| case |")
    assert list(rows) == [each.id for each in select() if Kind.INTERFACE in each.kinds]
    assert rows["del-twice"] == ["MUST", "18 of 20", "plugin-3, plugin-7", "20 of 21", "plugin-7 (not finished)"]
    assert rows["check-after-add"] == ["MUST", "19 of 19", "", "21 of 21", ""]


def test_the_page_does_not_depend_on_the_order_in_which_cases_ended(publisher: dict[str, Any]) -> None:
    made = report("plugin-1", del_twice=Verdict.FAILED, check_after_add=Verdict.FAILED)
    backwards = made._replace(outcomes=made.outcomes[::-1])
    pages = {publisher["page"]({"Go's": {"plugin-1": each}, "our": {}}, {}) for each in (made, backwards)}
    assert len(pages) == 1


def test_what_failed_is_explained(page: str) -> None:
    explained = page[page.index("### del-twice") :]
    assert "- Go's plugin-3: expected `this`; saw `that`" in explained
    assert "- Go's plugin-7: expected `this`; saw `that`" in explained


def test_every_plugin_is_judged_or_named(publisher: dict[str, Any]) -> None:
    """A plugin that is added must not be forgotten."""
    from importlib.metadata import entry_points

    assert set(publisher["OURS"]) == {entry.name for entry in entry_points(group="cnisdk.plugins")}

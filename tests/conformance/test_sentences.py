"""Quotations of the specification are word for word, and no level is stricter than the word of its sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cnisdk.conformance import CASES, Level
from cnisdk.conformance.case import Case

QUOTED = Path(__file__).with_name("quoted.md").read_text()

WORDS = {Level.MUST: "must|required", Level.SHOULD: "should"}


def plain(markdown: str) -> str:
    """Return the words without the marks of Markdown."""
    text = re.sub(r"\[([^]]*)\]\(#?[^) ]*\)", r"\1", markdown)
    text = re.sub(r"(?m)^\s*- |\||[`*]|\b_|_\b", " ", text)
    return re.sub(r"\s+([,.):])", r"\1", " ".join(text.replace("( ", "(").split()))


SECTIONS = {heading: plain(text) for heading, text in re.findall(r"(?ms)^# (§[^\n]+)\n(.*?)(?=^# |\Z)", QUOTED)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_words_are_those_of_the_specification(case: Case) -> None:
    text = " ".join(SECTIONS[section] for section in case.section.split(", "))
    place = 0
    for part in case.says.split(" [...] "):
        place = text.find(plain(part), place)
        assert place >= 0, part


@pytest.mark.parametrize("case", [case for case in CASES if case.level in WORDS], ids=lambda case: case.id)
def test_the_level_is_the_word_of_the_sentence(case: Case) -> None:
    """Only the sentence counts: the suite's own notes give no level."""
    assert re.search(rf"(?i)\b({WORDS[case.level]})\b", case.says)


def test_nothing_else_is_copied() -> None:
    """The file has the quoted sentences only."""
    said = " ".join(plain(case.says.replace("[...] ", "")) for case in CASES)
    for text in SECTIONS.values():
        for sentence in re.split(r"(?<=[a-z)]\.) (?=[A-Z])", text):
            assert sentence[:40] in said, sentence

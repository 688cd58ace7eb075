"""Parsers of the programs: help that fits 80 columns, one exit status for mistakes, completion and manual pages."""

from __future__ import annotations

import argparse
import shutil
import textwrap

_WIDEST = 80


class _Formatter(argparse.HelpFormatter):
    """Fill paragraphs; keep lines as they are in those where one begins with a space, such as examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, _WIDEST) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [paragraph.splitlines() for paragraph in text.strip("\n").split("\n\n")]
        return "\n\n".join(
            "\n".join(lines) if any(line.startswith(" ") for line in lines) else textwrap.fill(" ".join(lines), width)
            for lines in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """The parser of a program or of one of its commands. A mistake in the arguments ends it with status 2."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

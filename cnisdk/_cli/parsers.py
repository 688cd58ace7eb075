"""Argument parser of the programs: help fits 80 columns, and a mistake in the arguments ends with status 2."""

from __future__ import annotations

import argparse
import shutil
import textwrap

_WIDEST = 80


class _Formatter(argparse.HelpFormatter):
    """Fill paragraphs. A paragraph with an indented line, such as an example, keeps its lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(shutil.get_terminal_size().columns, _WIDEST) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [paragraph.splitlines() for paragraph in text.strip("\n").split("\n\n")]
        return "\n\n".join(
            "\n".join(lines) if any(line.startswith(" ") for line in lines) else textwrap.fill(" ".join(lines), width)
            for lines in paragraphs
        )


class Parser(argparse.ArgumentParser):
    """Parser of a program or of a subcommand. Options cannot be abbreviated."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", _Formatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]

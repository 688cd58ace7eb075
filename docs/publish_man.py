"""Write the manual pages of the programs, made from their parsers, into docs/man."""

from pathlib import Path

from argparse_manpage.manpage import Manpage

from cnisdk import __version__
from cnisdk._cli import cnisdk, cnitool

TITLES = {
    "cnitool": "attach network namespaces to CNI networks",
    "cnisdk": "tools for plugins of the Container Network Interface",
}


def render(program: str) -> str:
    """Make the manual page of a program."""
    parser = {"cnitool": cnitool, "cnisdk": cnisdk}[program].make_parser()
    page = Manpage(parser, {"description": TITLES[program], "date": f"cnisdk {__version__}", "project_name": "cnisdk"})
    page.manual = "Container Network Interface"
    return f"{page}\n"


def main() -> None:
    """Write both."""
    directory = Path(__file__).parent / "man"
    directory.mkdir(exist_ok=True)
    for program in TITLES:
        (directory / f"{program}.1").write_text(render(program))


if __name__ == "__main__":
    main()

"""Write the pages of the Python API, one for each package. They show every module that is public by name."""

from pathlib import Path

DOCS = Path(__file__).resolve().parent
CODE = DOCS.parent / "cnisdk"

PACKAGES = {
    "errors": "The table of codes: [Error codes](../errors.md).",
    "classes": "Frozen attrs classes that are made without attrs.",
    "spec": "Typed objects and versions of the specification. Pure: no I/O, any operating system.",
    "plugin": "Write a plugin. The names most plugins need are also in `cnisdk` itself.",
    "invoke": "Run another plugin.",
    "ipam": "Allocate addresses.",
    "dhcp": "Lease addresses from a DHCP server.",
    "linux": "Talk to the kernel. Linux only.",
    "runtime": "Run networks, as a container runtime does.",
    "testing": "Tools for tests. Needs Linux, and no root.",
    "conformance": "Judge any plugin executable. Needs Linux, and no root.",
}


def public_modules(package: str) -> list[str]:
    """Return the modules of a package that are public by name."""
    folder = CODE / package
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [CODE / f"{package}.py"]
    names = [file.relative_to(CODE.parent).with_suffix("").parts for file in files]
    return [".".join(name) for name in names if not any(part.startswith("_") for part in name)]


def render(package: str) -> str:
    """Render the page of a package."""
    lines = [f"# cnisdk.{package}", "", PACKAGES[package], ""]
    for module in public_modules(package):
        heading = [f"## {module}", ""] if module != f"cnisdk.{package}" else []
        lines += [*heading, "```{eval-rst}", f".. automodule:: {module}", "```", ""]
    return "\n".join(lines)


def main() -> None:
    """Write the pages that have changed."""
    for package in PACKAGES:
        page, text = DOCS / "reference" / "api" / f"{package}.md", render(package)
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


if __name__ == "__main__":
    main()

"""Compare two JUnit reports test by test: exit status 1, and the differences, when a verdict differs."""

import sys
from xml.etree import ElementTree


def verdicts(path: str) -> dict[str, str]:
    """What came of each test: passed, skipped, failure or error."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = [each.tag for each in case if each.tag in ("skipped", "failure", "error")]
        found[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    return found


def main(first: str, second: str) -> int:
    """Compare."""
    one, other = verdicts(first), verdicts(second)
    different = [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
    for name in different:
        print(f"{name}: {one.get(name, 'not run')} in {first}, {other.get(name, 'not run')} in {second}")
    print(f"{len(one)} and {len(other)} tests, {len(different)} with different verdicts")
    return 1 if different or not one else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

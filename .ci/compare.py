"""Compare two JUnit reports test by test: exit status 1, and the differences, when a verdict differs.

The first is root's; the second is of some of its tests. What only root can do, the other may skip, with a reason that
begins with "needs root": to be several users at once takes one who may become any.
"""

import sys
from xml.etree import ElementTree

ROOT = "skipped: needs root"


def verdicts(path: str) -> dict[str, str]:
    """What came of each test: passed, skipped, failure or error."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase"):
        bad = [each.tag for each in case if each.tag in ("skipped", "failure", "error")]
        if any((each.get("message") or "").startswith("needs root") for each in case if each.tag == "skipped"):
            bad = [ROOT]
        found[f"{case.get('classname')}::{case.get('name')}"] = bad[0] if bad else "passed"
    return found


def main(first: str, second: str) -> int:
    """Compare."""
    one, other = verdicts(first), verdicts(second)
    pairs = {name: (one.get(name), verdict) for name, verdict in sorted(other.items())}
    root = [name for name, pair in pairs.items() if pair == ("passed", ROOT)]
    different = [name for name, (mine, theirs) in pairs.items() if mine != theirs and name not in root]
    for name in different:
        print(f"{name}: {one.get(name, 'not run')} in {first}, {other[name]} in {second}")
    print(f"{len(one)} and {len(other)} tests, {len(different)} with different verdicts; {len(root)} need root")
    if len(other) < len(one) / 2:
        print("the second ran less than half of the first's: what was left out?")
    return 1 if different or len(other) < len(one) / 2 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""``python -m cnisdk``: the command ``cnisdk``."""

import sys

from ._cli.cnisdk import main

if __name__ == "__main__":
    sys.exit(main())

"""Start and end of ``cnitool``, whose own work takes less time than Python's beginning and end.

No garbage is collected while modules are imported: these make many objects and drop few. At the end nothing is freed:
the process just ends. Launchers of plugins do the same, see :mod:`..plugin._launch`.
"""

from __future__ import annotations

import gc
import sys

from .._light import NoReturn
from ..plugin._launch import COLLECT_AFTER, end


def cnitool() -> NoReturn:
    """Run ``cnitool`` with the arguments of this process, and end the process."""
    gc.disable()
    from .cnitool import main

    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
    gc.enable()
    try:
        status: object = main(sys.argv[1:])
    except SystemExit as exc:  # of the parser
        status = exc.code
    end(status)

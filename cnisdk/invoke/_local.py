"""Programs that this process runs itself, instead of starting another interpreter for them.

The program around a plugin sets :data:`runner` when it can run other plugins. All others start processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._light import TYPE_CHECKING

if TYPE_CHECKING:
    from .process import Finished

Runner = Callable[[str, Mapping[str, str], bytes, "float | None"], "Finished | None"]
"""Function that runs a program in this process: path, environment, standard input and seconds, as for
:func:`.process.execute`. It returns None if it cannot run that program.
"""

runner: Runner | None = None

"""Programs that this process runs itself, instead of starting another interpreter for them.

The program around a plugin sets :data:`runner`, when it knows how; everybody else starts processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .process import Finished

Runner = Callable[[str, Mapping[str, str], bytes, "float | None"], "Finished | None"]
"""Takes what :func:`.process.execute` takes: path, environment, standard input and the seconds it may take.

Returns None if this process cannot run that program itself.
"""

runner: Runner | None = None

"""Load plugins into the server, before the first worker is forked.

All workers share the memory of the server. So the server is warmed up (:mod:`cnisdk.plugin.warm`) and rehearses
plugins (:mod:`.rehearsal`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InternalError
from ..plugin import warm
from ..plugin._launch import Launcher, load_main, read_launcher
from ..plugin.main import PluginMain
from .rehearsal import rehearse
from .shim import launcher_id
from .worker import ServedPlugin


def load_plugins(launchers: Mapping[str, bytes]) -> dict[str, ServedPlugin]:
    """Import plugins, and rehearse them. Problems of a rehearsal go to stderr.

    Args:
        launchers: Text of the launcher of each type. It names the callable to import, and identifies the installation.

    Returns:
        The plugins by type.

    Raises:
        InternalError: (999) A launcher cannot be read, or its plugin cannot be imported.
    """
    loaded = {}
    for type_, text in launchers.items():
        launcher = read_launcher(text)
        if launcher is None:
            raise InternalError(
                f'the launcher of plugin "{type_}" was not written by `cnisdk install`', details="install it again"
            )
        loaded[type_] = ServedPlugin(type_, launcher_id(text), launcher, _import(type_, launcher))
    warm.up()
    for problem in rehearse(loaded, launchers):
        sys.stderr.write(f"cnisdk serve: {problem}\n")
    return loaded


def _import(type_: str, launcher: Launcher) -> Callable[[], Any]:
    try:
        main = load_main(launcher.module, launcher.attribute)
    except Exception as exc:
        raise InternalError(f'plugin "{type_}" cannot be imported: {exc}') from exc
    if isinstance(main, PluginMain):
        warm.up_for(main.plugin)
    return main

"""Find a plugin's executable along ``CNI_PATH`` (spec §2, "Execution protocol")."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from ..errors import InvalidConfigError, InvalidEnvironmentError
from ..spec.names import check_plugin_type


def split_path(text: str) -> tuple[str, ...]:
    """Split the value of ``CNI_PATH`` into its directories."""
    return tuple(element for element in text.split(os.pathsep) if element)


def get_plugin_path(type: str, paths: Sequence[str]) -> str:
    """Find the executable of a plugin.

    The first directory that has an executable regular file (or a link to one) of that name wins. A file that is not
    executable does not hide a good one further on, as it does with the reference.

    Args:
        type: The plugin's type, which is the name of its file.
        paths: Directories, in order. A relative one means the current directory; an empty one means nothing at all
            (the reference would search ``$PATH``).

    Returns:
        The absolute path of the executable, links not resolved.

    Raises:
        InvalidConfigError: (7) ``type`` is no file name, or there is no such plugin.
        InvalidEnvironmentError: (4) There is no directory to search.
    """
    check_plugin_type(type)
    directories = [os.path.abspath(path) for path in paths if path and "\0" not in path]
    if not directories:
        raise InvalidEnvironmentError(f'no paths provided: cannot find plugin "{type}"', details="CNI_PATH is empty")
    unfit: list[str] = []
    for directory in directories:
        path = os.path.join(directory, type)
        try:
            mode = os.stat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            unfit.append(f"{path} is not a regular file")
        elif not os.access(path, os.X_OK):
            unfit.append(f"{path} is not executable (mode {stat.S_IMODE(mode):04o})")
        else:
            return path
    raise InvalidConfigError(
        f'failed to find plugin "{type}" in path [{" ".join(directories)}]', details="; ".join(unfit)
    )

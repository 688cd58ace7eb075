"""Answer VERSION before other modules are imported: runtimes ask it most, and the answer needs none of them.

A plugin that is run with ``python -m`` may begin with::

    if __name__ == "__main__":
        from cnisdk.plugin.quick import answer_version

        answer_version()

which ends the process if the request is VERSION, and otherwise does nothing.
"""

from __future__ import annotations

import os

_ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Every released version of the specification, as :data:`cnisdk.spec.versions.ALL` has them, oldest first."""


def answer_version(supported: tuple[str, ...] = _ALL) -> None:
    """Answer the request of this process, and end it, if it is VERSION.

    Args:
        supported: The versions of the specification the plugin supports, oldest first.
    """
    if os.environ.get("CNI_COMMAND") != "VERSION":
        return
    listed = ",".join(f'"{version}"' for version in supported)
    answer = f'{{"cniVersion":"{_ALL[-1]}","supportedVersions":[{listed}]}}\n'.encode()
    try:
        while answer:
            answer = answer[os.write(1, answer) :]
    except OSError:
        os._exit(1)
    os._exit(0)

"""Ask a plugin for the versions it supports (spec §2, "VERSION")."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .._light import NamedTuple
from ..errors import CNIError, DecodingError
from ..spec.codec import find_key, loads
from ..spec.names import shorten
from .call import run
from .process import pass_on

# Plugins of 2016 require these even for VERSION.
_DUMMIES = {
    "CNI_COMMAND": "VERSION",
    "CNI_CONTAINERID": "",
    "CNI_NETNS": "dummy",
    "CNI_IFNAME": "dummy",
    "CNI_ARGS": "",
    "CNI_PATH": "dummy",
}


class PluginVersions(NamedTuple):
    """A plugin's answer to VERSION.

    Attributes:
        cni_version: The version of the answer.
        supported: Every ``cniVersion`` it accepts, as it writes them: they are compared to the letter.
    """

    cni_version: str
    supported: tuple[str, ...]


def plugin_versions(
    path: str,
    *,
    environ: Mapping[str, str],
    cni_version: str = "1.1.0",
    timeout: float | None = None,
    on_stderr: Callable[[bytes], object] = pass_on,
) -> PluginVersions:
    """Ask a plugin for the versions it supports.

    Args:
        path: Its executable.
        environ: The environment; the variables of CNI are set here.
        cni_version: The version to ask with.
        timeout: Seconds it may take; None means for ever.
        on_stderr: As for :func:`.run`.

    Raises:
        CNIError: As for :func:`.run`.
        DecodingError: (6) It is no answer to VERSION.
    """
    try:
        answer = run(
            path,
            environ={**environ, **_DUMMIES},
            stdin=b'{"cniVersion":"%s"}' % cni_version.encode(),
            timeout=timeout,
            on_stderr=on_stderr,
        )
    except CNIError as exc:
        if str(exc) == "unknown CNI_COMMAND: VERSION":  # how plugins of 0.1.0 answer
            return PluginVersions("0.1.0", ("0.1.0",))
        raise
    return parse_versions(answer, path)


def parse_versions(answer: bytes, path: str) -> PluginVersions:
    """Read the answer to VERSION.

    Raises:
        DecodingError: (6) It is no answer to VERSION.
    """
    document = loads(answer, f"version info of {path}")
    if not isinstance(document, dict):
        raise DecodingError(f"version info of {path} is {shorten(document)}, expected an object")
    version, supported = find_key(document, "cniVersion"), find_key(document, "supportedVersions")
    if not isinstance(version, str) or not version:
        raise DecodingError(f"version info of {path}: $.cniVersion is {shorten(version)}, expected a version")
    if not supported:
        if version == "0.2.0":
            return PluginVersions(version, ("0.1.0", "0.2.0"))
        raise DecodingError(f"version info of {path}: $.supportedVersions is missing or empty")
    if not isinstance(supported, list) or not all(isinstance(each, str) for each in supported):
        raise DecodingError(
            f"version info of {path}: $.supportedVersions is {shorten(supported)}, expected an array of strings"
        )
    return PluginVersions(version, tuple(supported))

"""Load networks from a directory such as ``/etc/cni/net.d``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from .._files import read_file
from .._light import NamedTuple
from ..errors import CNIError, InvalidConfigError, IOFailureError, cause_of
from ..spec._json import write_ascii
from ..spec.codec import loads
from .network import Network, NetworkPlugin, parse_plugin

DEFAULT_CONF_DIR = "/etc/cni/net.d"
"""Directory of network configurations, as in libcni."""

# The order in which files are read: lists first, whatever their names are.
_LISTS = (".conflist",)
_SINGLES = (".conf", ".json")


class NetworkNotFoundError(InvalidConfigError):
    """Code 7: no file defines a network of that name."""


class Loaded(NamedTuple):
    """The networks of a directory.

    Attributes:
        networks: The networks, in the order of precedence. Of several with one name, only the first.
        problems: An error for each file that could not be read, or that defines a network again.
    """

    networks: tuple[Network, ...]
    problems: tuple[CNIError, ...]


def read_network(path: str) -> Network:
    """Read one file, and the folder of further plugins that belongs to it.

    The content decides, not the name: a list in a ``.conf`` file is read as a list.

    Raises:
        IOFailureError: (5) It cannot be read.
        DecodingError: (6) Not JSON.
        InvalidConfigError: (7) Not a network.
        IncompatibleVersionError: (1) A version that does not exist.
    """
    return _complete(Network.parse(_read(path), path=path, single=path.endswith(_SINGLES)))


def load_networks(directory: str) -> Loaded:
    """Load every network of a directory. A broken file does not hide the others.

    Args:
        directory: Files ending in ``.conflist`` come first, then those in ``.conf`` and ``.json``; each group by name.

    Raises:
        IOFailureError: (5) The directory cannot be read; one that does not exist is empty.
    """
    networks: dict[str, Network] = {}
    problems: list[CNIError] = []
    for path in _files(directory):
        try:
            network = read_network(path)
        except CNIError as exc:
            problems.append(exc)
            continue
        first = networks.setdefault(network.name, network)
        if first is not network:
            problems.append(_hidden(network, first))
    return Loaded(tuple(networks.values()), tuple(problems))


def load_network(
    directory: str, name: str, *, on_problem: Callable[[CNIError], object] = lambda problem: None
) -> Network:
    """Load one network by name.

    Args:
        directory: See :func:`load_networks`.
        name: The network's name.
        on_problem: Called for each broken file of another network, and for each file that defines this one again.

    Raises:
        NetworkNotFoundError: (7) No file defines it.
        CNIError: The file that defines it is broken; as for :func:`read_network`.
    """
    found: Network | None = None
    others: list[str] = []
    problems: list[CNIError] = []
    for path in _files(directory):
        try:
            network = Network.parse(_read(path), path=path, single=path.endswith(_SINGLES))
        except CNIError as exc:
            # It may define the network that is asked for. Then its error is the answer, and not a later file.
            if found is None and _mentions(path, name):
                raise
            problems.append(exc)
            continue
        if network.name != name:
            others.append(network.name)
        elif found is None:
            found = _complete(network)
        else:
            problems.append(_hidden(network, found))
    if found is None:
        if not others and not problems:
            raise NetworkNotFoundError(f"no net configurations found in {directory}", details=f'looking for "{name}"')
        known = f"there are: {', '.join(dict.fromkeys(others)) or 'none'}"
        broken = [f"not readable: {problem}" for problem in problems]
        raise NetworkNotFoundError(
            f'no net configuration with name "{name}" in {directory}', details="; ".join([known, *broken])
        )
    for problem in problems:
        on_problem(problem)
    return found


def _files(directory: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    except OSError as exc:
        raise IOFailureError(f"cannot read the directory {directory}: {cause_of(exc)}") from exc
    for endings in (_LISTS, _SINGLES):
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(endings) and not os.path.isdir(path):
                yield path


def _read(path: str) -> bytes:
    try:
        return read_file(path)
    except OSError as exc:
        raise IOFailureError(f"cannot read network configuration {path}: {cause_of(exc)}") from exc


def _mentions(path: str, name: str) -> bool:
    """Return True if a file that cannot be read as JSON has the name of this network in it."""
    try:
        text = _read(path).decode(errors="replace")
    except CNIError:
        return False
    import re

    return re.search(rf'"name"\s*:\s*{re.escape(write_ascii(name))}', text) is not None


def _complete(network: Network) -> Network:
    """Add the plugins of the network's folder: spec 1.1.0, ``<directory of the file>/<network>/*.conf``, by name."""
    if not network.load_only_inlined_plugins:
        network = network.with_plugins(list(_folder(os.path.join(os.path.dirname(network.path), network.name))))
    if not network.plugins:
        raise InvalidConfigError(
            f"invalid network configuration {network.path}: no plugin configs found",
            details="neither in $.plugins nor in the folder of the network's name",
        )
    return network


def _folder(directory: str) -> Iterator[NetworkPlugin]:
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return  # a plain file of the network's name is no folder
    except OSError as exc:
        raise IOFailureError(f"cannot read the directory {directory}: {cause_of(exc)}") from exc
    for name in names:
        path = os.path.join(directory, name)
        if name.endswith(".conf") and not os.path.isdir(path):
            yield parse_plugin(loads(_read(path), f"plugin configuration {path}"), path)


def _hidden(network: Network, first: Network) -> InvalidConfigError:
    return InvalidConfigError(
        f'network "{network.name}" is defined by {first.path} and again by {network.path}, which is ignored'
    )

"""The grammar of names (spec §2 "Parameters" and §1 "Configuration format"), and the marks derived from names."""

from __future__ import annotations

from collections.abc import Callable

from .._light import Any, NamedTuple, cast
from ..errors import InvalidConfigError, InvalidEnvironmentError

# "Must start with an alphanumeric character, optionally followed by any combination of one or more alphanumeric
# characters, underscore (_), dot (.) or hyphen (-)": for container ids (§2) and for network names (§1).
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_NAME = _LETTERS | frozenset("_.-")

# The kernel's IFNAMSIZ is 16 with the NUL. The reference refuses '/', ':' and white space (dev_valid_name());
# control characters and NUL cannot come through a shell or the environment unharmed either.
_IFNAME_MAX = 15
# "%d" asks the kernel for a number of its own choice, so that the link would have another name than was asked for.
_IFNAME_BAD = frozenset("/:%")

# An alias is at most IFALIASZ - 1 = 255 bytes.
_TAG_MAX = 255


class Attachment(NamedTuple):
    """One container's interface on one network: the owner of every object that a plugin leaves."""

    network: str
    container_id: str
    ifname: str

    @property
    def tag(self) -> str:
        """The owner's mark on objects outside the container, at most 255 bytes: ``cni:mynet/2d6f…/eth0``.

        The grammar of names has no slash, so the text is unambiguous. Names too long for a link alias are hashed, with
        a ``#`` that no name can begin with.
        """
        return self.tag_within(_TAG_MAX)

    def tag_within(self, limit: int) -> str:
        """Return the owner's mark in at most `limit` bytes, 80 or more: hashed if the names are too long."""
        text = f"{network_tag_prefixes(self.network)[0]}{self.container_id}/{self.ifname}"
        if len(text.encode(errors="surrogateescape")) <= limit:
            return text
        return f"{network_tag_prefixes(self.network)[1]}{short_hash(self.container_id, self.ifname, digits=32)}"

    def __str__(self) -> str:
        return f'container "{self.container_id}" interface "{self.ifname}" on network "{self.network}"'


def network_tag_prefixes(network: str) -> tuple[str, str]:
    """Return the beginnings of the tags of a network's attachments: in clear, and hashed for over-long names."""
    return f"cni:{network}/", f"cni:#{short_hash(network, digits=32)}/"


def short_hash(*parts: str, digits: int) -> str:
    """Return `digits` hexadecimal digits of the SHA-512 over the parts, joined by NUL, which no name contains."""
    return digest("\0".join(parts).encode(errors="surrogateescape"))[:digits]


def digest(data: bytes) -> str:
    """Return the SHA-512 in hexadecimal digits."""
    global _sha512
    if _sha512 is None:
        _sha512 = _load_sha512()
    return str(_sha512(data).hexdigest())


_sha512: Callable[[bytes], Any] | None = None


def _load_sha512() -> Callable[[bytes], Any]:
    # hashlib loads OpenSSL, which takes 4 ms. The standard library's random avoids it in the same way.
    for module in ("_sha2", "_sha512"):
        try:
            return cast("Callable[[bytes], Any]", __import__(module).sha512)
        except (ImportError, AttributeError):
            continue
    from hashlib import sha512

    return sha512


def check_container_id(container_id: str) -> str:
    """Return the id unchanged.

    Raises:
        InvalidEnvironmentError: (4) It is empty, or has a character outside the spec's grammar.
    """
    if not container_id:
        raise InvalidEnvironmentError("CNI_CONTAINERID is empty")
    if not _is_name(container_id):
        raise InvalidEnvironmentError(
            f"invalid characters in CNI_CONTAINERID {shorten(container_id)}",
            details="expected letters, digits, '_', '.' and '-', beginning with a letter or a digit",
        )
    return container_id


def check_ifname(ifname: str) -> str:
    """Return the interface name unchanged.

    Raises:
        InvalidEnvironmentError: (4) The kernel would refuse it as the name of a link.
    """
    problem = None
    if not ifname:
        problem = "is empty"
    elif len(ifname.encode(errors="surrogateescape")) > _IFNAME_MAX:
        problem = f"is longer than {_IFNAME_MAX} bytes"
    elif ifname in (".", ".."):
        problem = "is . or .."
    elif any(each in _IFNAME_BAD or each.isspace() or _is_control(ord(each)) for each in ifname):
        problem = "contains / or : or % or whitespace or control characters, or is not UTF-8"
    if problem:
        raise InvalidEnvironmentError(f"invalid interface name in CNI_IFNAME: {shorten(ifname)} {problem}")
    return ifname


def check_network_name(name: str, path: str = "$.name") -> str:
    """Return the network's name unchanged.

    Raises:
        InvalidConfigError: (7) It is empty, or has a character outside the spec's grammar.
    """
    if not name:
        raise InvalidConfigError("missing network name", details=f"{path}: expected a non-empty string")
    if not is_network_name(name):
        raise InvalidConfigError(
            f"invalid characters found in network name {shorten(name)}",
            details=f"{path}: expected letters, digits, '_', '.' and '-', beginning with a letter or a digit",
        )
    return name


def is_network_name(name: str) -> bool:
    """Return whether :func:`check_network_name` accepts a name."""
    return _is_name(name)


def _is_name(text: str) -> bool:
    return text[:1] in _LETTERS and _NAME.issuperset(text)


def _is_control(number: int) -> bool:
    """Return whether a character is a control character, or stands for a byte that is not UTF-8."""
    return number < 0x20 or number == 0x7F or 0xDC80 <= number <= 0xDCFF


def check_plugin_type(name: str, path: str = "$.type") -> str:
    """Return the plugin's type unchanged: the file name of its executable, never a path (CVE-2021-20206).

    Raises:
        InvalidConfigError: (7) It is empty, or could name a file outside ``CNI_PATH``.
    """
    if not name:
        raise InvalidConfigError(f"no plugin name provided: {path} is empty")
    if "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise InvalidConfigError(
            f"invalid plugin name {shorten(name)}", details=f"{path}: expected the name of an executable, not a path"
        )
    return name


def shorten(value: object, limit: int = 80) -> str:
    """Show a value in a message: as JSON-like text, cut where it is long."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"

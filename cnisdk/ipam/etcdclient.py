"""Client of etcd v3: reads of one revision, and transactions that compare and swap, over its JSON gateway.

A process of a plugin lives for milliseconds, and may never talk to etcd at all. So this client is small: the standard
library's ``http.client`` on the JSON gateway that etcd serves beside gRPC (etcd's documentation, "gRPC gateway"). It
needs three things of it: ranges, transactions, and authentication.

A request goes to one endpoint, and to the next one if that fails, until the deadline. A transaction whose answer got
lost may have been carried out. It is sent again all the same, since one that compares cannot be carried out twice; but
then the comparison fails, and only the caller can know whether that is its own doing: see :class:`TransactionOutcome`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .._files import read_file
from .._light import TYPE_CHECKING, Any, NamedTuple
from ..classes import frozen
from ..errors import InvalidConfigError, IOFailureError, cause_of
from ..spec import _json
from ..spec.names import shorten

if TYPE_CHECKING:
    import ssl
    from http.client import HTTPConnection

# Seconds one request may take, over all endpoints.
_TIMEOUT = 5.0

# Seconds an endpoint has to answer, while there is another one to try.
_PATIENCE = 1.5

_COMPACTED = "required revision has been compacted"

# Errors that a new token cures: it has expired, or users and roles have changed since.
_TOKEN_STALE = ("invalid auth token", "revision of auth store is old")

_HOST = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
_IPV6 = "abcdefABCDEF0123456789.:"

# Codes of gRPC for temporary errors, after which another endpoint is tried: DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED ("too
# many requests"), INTERNAL and UNAVAILABLE ("leader changed", "no leader").
_TEMPORARY = {4, 8, 13, 14}


class CompactedError(Exception):
    """The revision that was asked for is no longer kept: look again, at a new one."""


@frozen(kw_only=True)
class EtcdConf:
    """Endpoints of etcd, and how to authenticate there: the object ``etcd`` of a configuration.

    Attributes:
        endpoints: Addresses of its members, such as ``https://10.0.0.1:2379``.
        ca_file: File with the certificates to trust; by default the system's.
        cert_file: File with our certificate, for a server that asks for one.
        key_file: File with its key.
        username: User to authenticate as; empty means not to.
        password_file: File with the password, of which white space at the end is ignored.
        prefix: Beginning of all keys.
        timeout: Seconds a request may take.
    """

    endpoints: tuple[str, ...] = ()
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    username: str = ""
    password_file: str = ""
    prefix: str = "/cnisdk/"
    timeout: float = _TIMEOUT


class Entry(NamedTuple):
    """Key with its value.

    Attributes:
        key: The key.
        value: The value; empty if only keys were asked for.
        revision: Revision of its last change.
    """

    key: str
    value: bytes
    revision: int


def broken_value(entry: Entry) -> IOFailureError:
    """Return the error for a value that this package cannot have written."""
    return IOFailureError(
        f"the key {entry.key} of etcd has the value {shorten(entry.value.decode(errors='replace'))}",
        details="expected JSON as cnisdk-cluster writes it: restore the key from a backup of etcd",
    )


class KeyRange(NamedTuple):
    """Keys that were read.

    Attributes:
        entries: Keys with their values, in order.
        total: Number of keys in the range, also of those that a limit or `count_only` left out.
        revision: Revision that was read.
    """

    entries: tuple[Entry, ...]
    total: int
    revision: int


class Compare(NamedTuple):
    """Condition of a transaction: the key is at this revision.

    Attributes:
        key: The key.
        revision: Revision of its last change; 0 means that there is no such key.
    """

    key: str
    revision: int


class TransactionOutcome(NamedTuple):
    """Outcome of a transaction.

    Attributes:
        done: It was carried out.
        doubtful: It was not carried out this time, but an earlier attempt may have been: its answer was lost. Read the
            keys to find out.
        revision: The revision of the answer.
    """

    done: bool
    doubtful: bool
    revision: int


class EtcdClient:
    """Connection to etcd. It is opened with the first request, and again in a forked process. Not for several threads.

    Args:
        conf: Where etcd is.

    Raises:
        InvalidConfigError: (7) There is no endpoint, or one is no URL.
    """

    def __init__(self, conf: EtcdConf) -> None:
        if not conf.endpoints:
            raise InvalidConfigError("no endpoint of etcd", details="$.ipam.etcd.endpoints is missing or empty")
        self._conf = conf
        self._targets = _take_apart(conf.endpoints)
        self._at = 0
        self._connection: HTTPConnection | None = None
        self._pid = 0
        self._token = ""
        self._context: ssl.SSLContext | None = None

    def __enter__(self) -> EtcdClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def look(
        self,
        first: str,
        end: str = "",
        *,
        revision: int = 0,
        limit: int = 0,
        count_only: bool = False,
        deadline: float | None = None,
    ) -> KeyRange:
        """Read a key, or all keys from `first` up to but without `end`.

        Args:
            first: The key, or the first one.
            end: The first key that is not read; empty means to read one key.
            revision: Revision to look at; 0 means the newest.
            limit: Keys to return, at most; 0 means all.
            count_only: Return only their number.
            deadline: Time of ``time.monotonic()`` at which to give up; None means after the configured timeout.

        Raises:
            CompactedError: The revision is no longer kept.
            IOFailureError: (5) No endpoint answers, or the user may not read these keys.
        """
        body: dict[str, Any] = {"key": _encode(first)}
        if end:
            body["range_end"] = _encode(end)
        body |= {key: value for key, value in (("revision", revision), ("limit", limit)) if value}
        if count_only:
            body["count_only"] = True
        answer, _ = self._ask("kv/range", body, deadline)
        entries = tuple(
            Entry(_decode(each["key"]).decode(), _decode(each.get("value", "")), int(each["mod_revision"]))
            for each in answer.get("kvs", ())
        )
        return KeyRange(entries, int(answer.get("count", 0)), revision or int(answer["header"]["revision"]))

    def transact(
        self,
        compares: Sequence[Compare],
        puts: Mapping[str, bytes],
        deletes: Sequence[str] = (),
        *,
        deadline: float | None = None,
    ) -> TransactionOutcome:
        """Write and delete keys if all conditions hold; else change nothing.

        Raises:
            IOFailureError: (5) No endpoint answers, or the user may not write these keys. If the last answer was lost,
                the keys may have been changed all the same.
        """
        conditions = [
            {
                "key": _encode(each.key),
                "target": "MOD",
                "result": "EQUAL",
                "mod_revision": each.revision,
            }
            for each in compares
        ]
        changes: list[dict[str, Any]] = [
            {"request_put": {"key": _encode(key), "value": _base64(value)}} for key, value in puts.items()
        ]
        changes += [{"request_delete_range": {"key": _encode(key)}} for key in deletes]
        answer, repeated = self._ask("kv/txn", {"compare": conditions, "success": changes}, deadline)
        done = bool(answer.get("succeeded"))  # left out when false
        return TransactionOutcome(done, repeated and not done, int(answer["header"]["revision"]))

    # --- requests -----------------------------------------------------------------------------------------------------

    def _ask(self, path: str, body: Mapping[str, Any], deadline: float | None) -> tuple[dict[str, Any], bool]:
        """Send a request until an endpoint answers it, or the deadline has passed.

        Returns:
            The answer, and True if an earlier answer may have been lost.
        """
        until = time.monotonic() + self._conf.timeout
        until = until if deadline is None else min(until, deadline)
        lost = renewed = False
        untrusted: set[int] = set()  # endpoints with which there is no TLS, now or later
        said = "no time was left"
        pause = 0.01
        for attempt in range(1 << 30):
            left = until - time.monotonic()
            if left <= 0:
                break
            patience = min(left, _PATIENCE) if len(self._targets) > 1 else left
            try:
                if self._conf.username and not self._token:
                    self._token = self._authenticate(patience)
                status, answer = self._send(path, body, patience)
            except (OSError, ValueError) as exc:
                # The server may have got the request, unless there was no connection.
                lost = lost or self._connection is not None
                said = f"{self._conf.endpoints[self._at]}: {_why(exc)}"
                if _is_refusal(exc):
                    untrusted.add(self._at)
                    if len(untrusted) == len(self._targets):
                        break
                self._next()
            else:
                if status == 200:
                    return answer, lost
                error = str(answer.get("message") or answer.get("error") or status)
                said = f"{self._conf.endpoints[self._at]}: {error}"
                if _COMPACTED in error:
                    raise CompactedError(f"etcd: {error}")
                if self._token and not renewed and any(each in error for each in _TOKEN_STALE):
                    self._token, renewed = "", True
                    continue
                if answer.get("code") not in _TEMPORARY and status not in (502, 503, 504):
                    raise IOFailureError(f"etcd refused a request: {error}", details=said)
                lost = True
                self._next()
            if (attempt + 1) % len(self._targets) == 0:
                time.sleep(min(pause, max(0.0, until - time.monotonic())))
                pause = min(2 * pause, 0.5)
        raise IOFailureError(f"etcd does not answer: {said}", details=f"$.ipam.etcd.endpoints: {self._names()}")

    def _authenticate(self, patience: float) -> str:
        """Return a token for the user.

        Raises:
            IOFailureError: (5) The password is wrong, or cannot be read.
            OSError: The endpoint does not answer.
        """
        try:
            password = read_file(self._conf.password_file).decode().rstrip()
        except (OSError, ValueError) as exc:
            raise IOFailureError(
                f"cannot read the password for etcd from {self._conf.password_file}: {cause_of(exc)}",
                details="$.ipam.etcd.passwordFile",
            ) from exc
        status, answer = self._send("auth/authenticate", {"name": self._conf.username, "password": password}, patience)
        if status != 200:
            error = answer.get("message") or answer.get("error") or status
            if answer.get("code") in _TEMPORARY:
                raise ConnectionError(error)
            raise IOFailureError(
                f"etcd refused the user {self._conf.username}: {error}",
                details=f"$.ipam.etcd.username, passwordFile; {self._conf.endpoints[self._at]}",
            )
        return str(answer["token"])

    def _send(self, path: str, body: Mapping[str, Any], patience: float) -> tuple[int, dict[str, Any]]:
        """Send one request to the current endpoint.

        Raises:
            OSError: It does not answer.
            ValueError: Its answer does not have the form of etcd's.
        """
        from http.client import HTTPException

        if self._connection is None or self._pid != os.getpid():
            self._connection, self._pid = None, os.getpid()
            self._connection = self._connect(patience)
        connection = self._connection
        if connection.sock is not None:
            connection.sock.settimeout(patience)
        headers = {"Content-Type": "application/json"} | ({"Authorization": self._token} if self._token else {})
        try:
            connection.request("POST", f"/v3/{path}", _json.write(body).encode(), headers)
            reply = connection.getresponse()
            data = reply.read()
        except HTTPException as exc:
            raise ConnectionError(str(exc) or type(exc).__name__) from exc
        try:
            answer = _json.read(data.decode())
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = data.decode(errors="replace").strip()[:200]
            if not 400 <= reply.status < 500:
                raise ValueError(f"its answer is none of etcd's: status {reply.status}, {text!r}")
            answer = {"message": text}  # refused before it came to the gateway
        return reply.status, answer

    def _connect(self, patience: float) -> HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        secure, host, port = self._targets[self._at]
        connection: HTTPConnection
        if secure:
            connection = HTTPSConnection(host, port, timeout=patience, context=self._secure())
        else:
            connection = HTTPConnection(host, port, timeout=patience)
        connection.connect()
        return connection

    def _secure(self) -> ssl.SSLContext:
        """Return the settings of TLS.

        Raises:
            IOFailureError: (5) A certificate or key cannot be used.
        """
        if self._context is None:
            import ssl

            conf = self._conf
            try:
                self._context = ssl.create_default_context(cafile=conf.ca_file or None)
                if conf.cert_file:
                    self._context.load_cert_chain(conf.cert_file, conf.key_file or None)
            except (OSError, ValueError) as exc:
                named = ", ".join(filter(None, (conf.ca_file, conf.cert_file, conf.key_file)))
                raise IOFailureError(
                    f"cannot use the certificates for etcd: {cause_of(exc)}", details=f"$.ipam.etcd: {named}"
                ) from exc
        return self._context

    def _next(self) -> None:
        """Turn to the next endpoint."""
        self.close()
        self._at = (self._at + 1) % len(self._targets)

    def _names(self) -> str:
        return ", ".join(self._conf.endpoints)


@lru_cache(maxsize=4)
def _take_apart(endpoints: tuple[str, ...]) -> tuple[tuple[bool, str, int], ...]:
    """Split each URL: True if it is encrypted, its host, and its port."""
    return tuple(_target(url, index) for index, url in enumerate(endpoints))


def _target(url: str, index: int) -> tuple[bool, str, int]:
    """Split one URL."""
    # Not by urllib, nor by a regular expression: to import or to compile them takes longer than an ADD.
    scheme, _, place = url.partition("://")
    host, colon, port = place.removesuffix("/").rpartition(":")
    if not colon or port.endswith("]"):
        host, port = place.removesuffix("/"), "2379"
    allowed = _HOST
    if host.startswith("[") and host.endswith("]"):
        host, allowed = host[1:-1], _IPV6
    if scheme in ("http", "https") and host and not host.strip(allowed) and port.isdecimal() and int(port) < 1 << 16:
        return scheme == "https", host, int(port)
    raise InvalidConfigError(
        f'"{url}" is no endpoint of etcd',
        details=f"$.ipam.etcd.endpoints[{index}]: expected a URL such as https://10.0.0.1:2379",
    )


def _why(exc: Exception) -> str:
    import ssl  # which `http.client` has loaded

    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError) and exc.reason:
        return f"TLS failed: {exc.reason.replace('_', ' ').lower()}"
    return str(exc) or type(exc).__name__


def _is_refusal(exc: Exception) -> bool:
    """Return True if one side does not accept the other's certificate, or does not speak TLS: asking again is no use.

    Other subclasses of SSLError mean that a connection ended, perhaps because the member of the cluster stops.
    """
    import ssl

    return type(exc) in (ssl.SSLCertVerificationError, ssl.SSLError)


def _encode(key: str) -> str:
    return _base64(key.encode())


def _base64(data: bytes) -> str:
    from binascii import b2a_base64  # most ADDs do not talk to etcd

    return b2a_base64(data, newline=False).decode()


def _decode(text: str) -> bytes:
    from binascii import a2b_base64

    return a2b_base64(text)


def end_of(prefix: str) -> str:
    """Return the first key after all that begin with a prefix."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)

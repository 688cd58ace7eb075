"""etcd behind certificates and passwords: each refusal names the endpoint, comes at once and changes nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import trustme
from attrs import evolve, frozen

from cnisdk.errors import InvalidConfigError, IOFailureError, TryAgainLaterError
from cnisdk.ipam.etcdclient import EtcdClient, EtcdConf
from cnisdk.testing import PluginUnderTest
from cnisdk_plugins.cluster import ClusterPlugin

from .conftest import Member, started

PAST = datetime.now(timezone.utc) - timedelta(days=1)


@frozen
class Place:
    """A container as an IPAM plugin sees it."""

    id: str = "web"
    netns: str = "/run/netns/none"


class Files:
    """Certificates and keys as files: of the server, of a node, and others that are wrong."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca, self.other = trustme.CA(), trustme.CA()
        self.server, self.expired = (self.issue(self.ca, "127.0.0.1", expires) for expires in (None, PAST))
        self.ca_file = self.save_ca("ca.pem", self.ca)
        self.other_ca_file = self.save_ca("other-ca.pem", self.other)
        self.server_file = self.save("server.pem", self.server)
        self.node = self.save("node.pem", self.issue(self.ca, "n1"))
        self.stranger = self.save("stranger.pem", self.issue(self.other, "n1"))
        self.named = self.save("named.pem", self.ca.issue_cert("n1", common_name="node"))
        self.late = self.save("late.pem", self.issue(self.ca, "n1", PAST))

    def issue(self, ca: trustme.CA, name: str, expires: datetime | None = None) -> trustme.LeafCert:
        return ca.issue_cert(name, not_after=expires)

    def save_ca(self, name: str, ca: trustme.CA) -> str:
        ca.cert_pem.write_to_path(self.directory / name)
        return str(self.directory / name)

    def save(self, name: str, cert: trustme.LeafCert) -> str:
        cert.private_key_and_cert_chain_pem.write_to_path(self.directory / name)
        return str(self.directory / name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Member]:
    """A member that shows its certificate, and asks clients for theirs."""
    options = ["--cert-file", files.server_file, "--key-file", files.server_file]
    options += ["--client-cert-auth", "--trusted-ca-file", files.ca_file]
    keys = {"ca_file": files.ca_file, "cert_file": files.node, "key_file": files.node}
    with started(tmp_path_factory.mktemp("etcd-tls"), *options, **keys) as made:
        yield made


@pytest.fixture
def unchanged(secure: Member) -> Iterator[None]:
    """Check that the test leaves etcd at the revision at which it found it."""
    with EtcdClient(secure.conf) as client:
        before = client.look("nothing").revision
        yield
        assert client.look("nothing").revision == before


def attempt(conf: EtcdConf) -> None:
    with EtcdClient(conf) as client:
        client.transact([], {"/cnisdk/x": b"x"})


def test_both_sides_show_certificates(secure: Member) -> None:
    with EtcdClient(secure.conf) as client:
        assert client.transact([], {"/cnisdk/y": b"y"}).done
        assert client.look("/cnisdk/y").entries[0].value == b"y"


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"ca_file": "other_ca_file"}, "its certificate is not trusted: .*self.signed certificate|unable to get"),
        ({"ca_file": ""}, "its certificate is not trusted"),
        ({"cert_file": "stranger", "key_file": "stranger"}, "TLS failed: .*alert"),
        ({"cert_file": "late", "key_file": "late"}, "TLS failed: .*alert"),
        ({"cert_file": "", "key_file": ""}, "TLS failed: .*certificate required|TLS failed: .*alert"),
    ],
    ids=["another CA", "the system's CAs", "certificate of another CA", "expired certificate", "no certificate"],
)
def test_certificates_that_do_not_fit(secure: Member, files: Files, keys: dict[str, str], text: str) -> None:
    wrong: dict[str, Any] = {key: getattr(files, name) if name else "" for key, name in keys.items()}
    # It does not wait for the deadline, which is further away than this test may take.
    with pytest.raises(IOFailureError, match=text) as caught:
        attempt(evolve(secure.conf, timeout=3600, **wrong))
    assert caught.value.msg.startswith(f"etcd does not answer: {secure.url}: ")


@pytest.mark.usefixtures("unchanged")
def test_a_server_whose_certificate_has_expired(secure: Member, files: Files) -> None:
    files.save("server.pem", files.expired)  # etcd reads it anew for each connection
    try:
        with pytest.raises(IOFailureError, match=f"{secure.url}: its certificate is not trusted: .*expired"):
            attempt(evolve(secure.conf, timeout=3600))
    finally:
        files.save("server.pem", files.server)


@pytest.mark.usefixtures("unchanged")
def test_a_server_of_another_name(secure: Member) -> None:
    url = f"https://localhost:{secure.port}"
    with pytest.raises(IOFailureError, match=f"{url}: its certificate is not trusted: Hostname mismatch"):
        attempt(evolve(secure.conf, endpoints=(url,), timeout=3600))


def test_a_member_that_is_trusted_is_asked_after_one_that_is_not(secure: Member) -> None:
    url = f"https://localhost:{secure.port}"
    with EtcdClient(evolve(secure.conf, endpoints=(url, secure.url))) as client:
        assert client.look("/cnisdk/none").entries == ()


@pytest.mark.usefixtures("unchanged")
def test_no_tls_where_the_server_wants_it(secure: Member) -> None:
    url = secure.url.replace("https", "http")
    with pytest.raises(IOFailureError, match=f"etcd does not answer: {url}: "):
        attempt(EtcdConf(endpoints=(url,), timeout=0.3))


def test_certificates_that_cannot_be_read(secure: Member, files: Files) -> None:
    with pytest.raises(IOFailureError, match="cannot use the certificates for etcd"):
        attempt(evolve(secure.conf, ca_file="/nowhere/ca.pem"))
    with pytest.raises(IOFailureError, match="cannot use the certificates for etcd"):
        attempt(evolve(secure.conf, key_file=files.late))


@pytest.mark.usefixtures("unchanged")
def test_a_node_with_a_wrong_ca_leases_nothing(secure: Member, files: Files, tmp_path: Path) -> None:
    keys = {"caFile": files.other_ca_file, "certFile": files.node, "keyFile": files.node}
    etcd = {"endpoints": [secure.url], **keys}
    ipam = {"type": "cnisdk-cluster", "node": "n1", "dataDir": str(tmp_path), "subnet": "10.0.0.0/24", "etcd": etcd}
    plugin = PluginUnderTest(None, ClusterPlugin, {"name": "net", "ipam": ipam})
    with pytest.raises(TryAgainLaterError, match=f".*{secure.url}: its certificate is not trusted"):
        plugin.add(Place())
    assert not list(tmp_path.rglob("10.0.0.*"))
    plugin.delete(Place())


@pytest.fixture
def password(secure: Member, files: Files, tmp_path: Path) -> Iterator[Path]:
    """A file with the password of the user `node`, who may use the keys below /cnisdk/."""

    def ctl(*args: str) -> None:
        argv = ["etcdctl", "--endpoints", secure.url, "--cacert", files.ca_file]
        argv += ["--cert", files.node, "--key", files.node, *args]
        subprocess.run(argv, env={**os.environ, "ETCDCTL_API": "3"}, check=True, capture_output=True)

    path = tmp_path / "password"
    path.write_text("right\n")
    ctl("user", "add", "root:root")
    ctl("user", "grant-role", "root", "root")
    ctl("user", "add", "node:right")
    ctl("role", "add", "ipam")
    ctl("role", "grant-permission", "--prefix=true", "ipam", "readwrite", "/cnisdk/")
    ctl("user", "grant-role", "node", "ipam")
    ctl("auth", "enable")
    try:
        yield path
    finally:
        with suppress(subprocess.CalledProcessError):
            ctl("--user", "root:root", "auth", "disable")


def test_users_and_passwords(secure: Member, files: Files, password: Path) -> None:
    conf = evolve(secure.conf, username="node", password_file=str(password), timeout=3600)
    with EtcdClient(conf) as known:
        assert known.transact([], {"/cnisdk/z": b"z"}).done
        before = known.look("/cnisdk/z").revision
        known._token = "expired.0"
        assert known.look("/cnisdk/z").entries[0].value == b"z"

        with pytest.raises(IOFailureError, match="permission denied") as caught:
            known.transact([], {"/other/z": b"z"})
        assert secure.url in caught.value.details

        # A certificate does not stand for a user, and must not look as if: etcd's gateway does not hand its name on.
        with pytest.raises(IOFailureError, match="etcd refused the user node: CommonName of client"):
            attempt(evolve(conf, cert_file=files.named, key_file=files.named))
        with pytest.raises(IOFailureError, match=r"etcd refused a request: .*(denied|is empty)") as caught:
            attempt(secure.conf)
        assert secure.url in caught.value.details
        with pytest.raises(IOFailureError, match=r"etcd refused the user nobody: .*authentication failed") as caught:
            attempt(evolve(conf, username="nobody"))
        assert secure.url in caught.value.details
        password.write_text("wrong")
        with pytest.raises(IOFailureError, match=r"etcd refused the user node: .*authentication failed") as caught:
            attempt(conf)
        assert secure.url in caught.value.details
        password.unlink()
        with pytest.raises(IOFailureError, match="cannot read the password for etcd"):
            attempt(conf)
        assert known.look("/cnisdk/z").revision == before


def test_a_password_file_is_needed(secure: Member) -> None:
    with pytest.raises((IOFailureError, InvalidConfigError), match="password"):
        attempt(evolve(secure.conf, username="node"))

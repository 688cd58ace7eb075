"""dhcp: the address that a DHCP server of the network leases (IPAM plugin).

Takes the configuration of the reference plugin of this name, and returns its results. The leases are kept by a daemon,
``cnisdk dhcp``, since a lease must be renewed long after ADD. IPv4 only. As the reference's, the executable is the
daemon, too: ``dhcp daemon``.
"""

import os
import sys

from cnisdk import (
    AddRequest,
    Attachment,
    CheckRequest,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    IOFailureError,
    IPAMConf,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    UnsupportedFieldError,
    frozen,
)
from cnisdk.dhcp import client, options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

CLIENT_ID_MAX = 254
TIMEOUT_MAX = 80  # seconds; a plugin that delegates to this one waits for 90


@frozen(kw_only=True)
class ProvideOption:
    """An option that the client sends to the server.

    Attributes:
        option: Name or number.
        value: Its value.
        from_arg: Name of the argument in ``CNI_ARGS`` that has the value; it replaces ``value``.
    """

    option: str
    value: str = ""
    from_arg: str = ""


@frozen(kw_only=True)
class RequestOption:
    """An option that the client asks the server for.

    Attributes:
        option: Name or number; empty for none.
        skip_default: Ask for no options but those that are listed.
    """

    option: str = ""
    skip_default: bool = False


@frozen(kw_only=True)
class DHCPIPAM(IPAMConf):
    """The object ``ipam``.

    Attributes:
        daemon_socket_path: Path of the daemon's socket.
        provide: Options to send.
        request: Options to ask for, besides the default ones.
        priority: Metric of the routes.
        timeout: Seconds to wait for a lease.
        ipv6: Refused: there is no DHCPv6.
    """

    daemon_socket_path: str = client.SOCKET_PATH
    provide: tuple[ProvideOption, ...] = ()
    request: tuple[RequestOption, ...] = ()
    priority: int = 0
    timeout: float = client.PATIENCE
    ipv6: bool = False

    @property
    def socket(self) -> str:
        """Path of the daemon's socket; an empty one in the configuration means the default."""
        return self.daemon_socket_path or client.SOCKET_PATH

    def validate(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UnsupportedFieldError: (2) IPv6 is asked for.
            InvalidConfigError: (7) A number is out of range.
        """
        if self.ipv6:
            raise UnsupportedFieldError(
                "$.ipam.ipv6 is true, but dhcp leases IPv4 addresses only",
                details="containers get IPv6 addresses by router advertisements ($.acceptRA of bridge), or from "
                "another IPAM plugin on a network of its own",
            )
        if not 0 <= self.priority < 1 << 32:
            raise InvalidConfigError(f"$.ipam.priority is {self.priority}, expected a metric from 0 to {(1 << 32) - 1}")
        if not 0 < self.timeout <= TIMEOUT_MAX:
            raise InvalidConfigError(f"$.ipam.timeout is {self.timeout:g}, expected seconds, at most {TIMEOUT_MAX}")


@frozen(kw_only=True)
class DHCPConf(NetConf):
    """The network configuration."""

    ipam: DHCPIPAM = DHCPIPAM()


class DHCP(Plugin[DHCPConf]):
    """CNI dhcp plugin: the address that a DHCP server leases."""

    leaves_process_unchanged = True

    @classmethod
    def lease_tables(cls, conf: DHCPConf | None, directory: str = "") -> tuple[()]:
        return ()  # the daemon has them: `cnisdk dhcp --status`

    def add(self, request: AddRequest[DHCPConf]) -> Result:
        ipam = request.conf.ipam
        ipam.validate()
        provided, requested = provided_options(request), requested_options(ipam)
        lease = client.add_lease(
            ipam.socket,
            request.attachment,
            request.netns,
            provided=provided,
            requested=requested,
            priority=ipam.priority,
            timeout=ipam.timeout,
            undo=request.undo,
        )
        return lease.to_result(ipam.priority)

    def delete(self, request: DelRequest[DHCPConf]) -> None:
        client.delete_lease(request.conf.ipam.socket, request.attachment)

    def check(self, request: CheckRequest[DHCPConf]) -> None:
        ipam = request.conf.ipam
        ipam.validate()
        result = request.require_prev_result()
        lease = client.get_lease(ipam.socket, request.attachment)
        if all(ip.address != lease.interface for ip in result.ips):
            raise IOFailureError(
                f"dhcp: the server has leased {lease.interface} meanwhile, which is not in $.prevResult.ips",
                details="the daemon has given the interface the new address",
            )

    def gc(self, request: GCRequest[DHCPConf]) -> None:
        client.delete_stale_leases(request.conf.ipam.socket, request.network, request.valid_attachments)

    def status(self, request: StatusRequest[DHCPConf]) -> None:
        request.conf.ipam.validate()
        client.get_status(request.conf.ipam.socket)


def provided_options(request: AddRequest[DHCPConf]) -> dict[int, bytes]:
    """Return the options that the client sends, by number. A later entry replaces an earlier one.

    Raises:
        InvalidConfigError: (7) There is no such option, its value is too long, or it is the protocol's own.
    """
    found = {options.CLIENT_ID: client_id(request.attachment)}
    for index, each in enumerate(request.conf.ipam.provide):
        path = f"$.ipam.provide[{index}]"
        number = options.parse_option(each.option, f"{path}.option")
        for text in (each.value, request.args.get(each.from_arg, "") if each.from_arg else ""):
            if text:
                found[number] = options.check_provided(number, text.encode(), path)
    return found


def requested_options(ipam: DHCPIPAM) -> tuple[int, ...]:
    """Return the options that the client asks for: those of the configuration, then the default ones.

    Raises:
        InvalidConfigError: (7) There is no such option, or it has no value.
    """
    own = []
    for index, each in enumerate(ipam.request):
        if each.option:
            path = f"$.ipam.request[{index}].option"
            own.append(options.check_requested(options.parse_option(each.option, path), path))
    default = () if any(each.skip_default for each in ipam.request) else options.REQUESTED
    return tuple(dict.fromkeys((*own, *default)))


def client_id(attachment: Attachment) -> bytes:
    """Return the client identifier: the reference's, so that a server has the same address for both."""
    network, container_id, ifname = attachment
    return (b"\0" + f"{container_id}/{network}/{ifname}".encode())[:CLIENT_ID_MAX]


class DHCPMain(PluginMain):
    """The program: the plugin, or with the argument ``daemon`` the daemon."""

    def __call__(self) -> "NoReturn":
        """Serve the request of this process and exit, or become the daemon."""
        words = sys.argv[2:] if sys.argv[0] == "-c" else sys.argv[1:]  # a launcher gives its own path first
        if words[:1] == ["daemon"] and not os.environ.get("CNI_COMMAND"):
            # The reference's options may have one dash.
            options = [f"-{each}" if each.startswith("-") and each[1:2] != "-" else each for each in words[1:]]
            os.execv(sys.executable, [sys.executable, "-I", "-m", "cnisdk", "dhcp", *options])
        super().__call__()


main = DHCPMain(DHCP, "CNI dhcp plugin v1.9.1")

if __name__ == "__main__":
    main()

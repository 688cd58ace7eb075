"""tuning: change settings of the container's kernel and of its interface, and change them back on DEL.

Takes the configuration of the reference plugin of that name. The values before are kept in the reference's file, in its
format and with more in it, so that either restores what the other changed.
"""

from __future__ import annotations

if __name__ == "__main__":  # VERSION needs nothing of what follows
    from cnisdk.plugin.quick import answer_version

    answer_version()

import sys
from collections.abc import Callable, Mapping
from functools import partial

from cnisdk import (
    AddRequest,
    CheckRequest,
    CNIError,
    DelRequest,
    GCRequest,
    InvalidConfigError,
    IOFailureError,
    NetConf,
    Plugin,
    PluginMain,
    Result,
    StatusRequest,
    field,
    frozen,
    json_field,
    run_all,
)
from cnisdk.linux import link, sysctl
from cnisdk.linux.links.link import Link
from cnisdk.linux.netns import NetNS
from cnisdk.plugin import chained, interface
from cnisdk.plugin.statefile import StateFile, delete_stale
from cnisdk.spec.codec import find_repeated_key, structure
from cnisdk.spec.names import shorten

TYPE_CHECKING = False  # without typing, a request ends sooner
if TYPE_CHECKING:
    from typing import Any

    Wanted = tuple[dict[str, Any], dict[str, str]]  # settings by their keys in SETTERS, sysctls by their paths

ALLOWLIST, DATA_DIR = "/etc/cni/tuning/allowlist.conf", "/run/cni/tuning"
# By keys of the state file, in its order; in lower case they are attributes of a link and of the configuration.
SETTERS: dict[str, Callable[[Link, Any], None]] = {
    "mac": Link.set_mac,
    "promisc": Link.set_promisc,
    "mtu": Link.set_mtu,
    "allmulti": Link.set_allmulti,
    "txQLen": Link.set_txqlen,
}
UNSET = {"mac": "", "promisc": False, "mtu": 0}  # what leaves a setting as it is, if not None


@frozen(kw_only=True)
class Arguments:
    """Keys that ``args.cni`` may set, too. It wins over the configuration's own keys."""

    sysctl: Mapping[str, str] = field(factory=dict)
    promisc: bool | None = None
    mtu: int | None = None
    allmulti: bool | None = None
    txqlen: int | None = json_field("txQLen", default=None)


@frozen(kw_only=True)
class TuningConf(NetConf):
    """The configuration: the keys of the newest reference plugin.

    Attributes:
        sysctl: Settings below ``net``, in the order in which they are written; ``IFNAME`` in a key is the interface.
        mac: Hardware address of the interface.
        promisc: The interface receives all frames; false leaves it.
        mtu: MTU in bytes; 0 leaves it.
        allmulti: The interface receives all multicast frames; absent leaves it.
        txqlen: Length of its queue in packets; absent leaves it.
        data_dir: Directory of the files with the values before; an empty one is the default.
    """

    sysctl: Mapping[str, str] = field(factory=dict)
    mac: str = ""
    promisc: bool = False
    mtu: int = 0
    allmulti: bool | None = None
    txqlen: int | None = json_field("txQLen", default=None)
    data_dir: str = DATA_DIR

    @property
    def arguments(self) -> Arguments:
        """``args.cni``, typed."""
        return structure(self.args.get("cni") or {}, Arguments, path="$.args.cni")


class Tuning(Plugin[TuningConf]):
    """CNI tuning plugin: sysctls and settings of the container's interface."""

    leaves_process_unchanged = True

    @classmethod
    def conformance(cls) -> dict[str, object]:
        sysctls = {"net.ipv4.conf.IFNAME.arp_notify": "1", "net.ipv4.ip_default_ttl": "63"}
        return {"kind": "chained", "conf": {"capabilities": {"mac": True}, "sysctl": sysctls, "mtu": 1400}}

    def add(self, request: AddRequest[TuningConf]) -> Result:
        if twice := find_repeated_key(request.stdin, "sysctl"):
            raise InvalidConfigError("duplicated sysctl keys are not allowed", details=f"$.sysctl has {twice} twice")
        settings, sysctls = wanted = wanted_by(request)
        sysctl.check_allowed(ALLOWLIST, {**request.conf.sysctl, **request.conf.arguments.sysctl})
        result = request.require_prev_result()
        if not any(wanted):
            return result
        netns, file = request.open_netns(), StateFile(request.conf.data_dir or DATA_DIR, request.attachment)
        end = link.get(request.ifname, netns) if settings else None  # sysctls need none: a program may drive the device
        earlier, space = file.find() or {}, netns.identify()
        earlier = earlier if earlier.get("netns", space) == space else {}  # a container that is gone had this id, too
        saved = values_before(wanted, netns, end, earlier) | {"netns": space, "asked": sysctls}
        found = dict(saved["sysctl"].items() - earlier.get("sysctl", {}).items())
        for key, others in find_sharers(file, saved, request.ifname).items():
            saved["sysctl"][key] = others[0]["sysctl"][key]  # of before the first of them
        request.undo(file.write, earlier) if earlier else request.undo(file.delete)
        file.write(merge(earlier, saved))
        there = values_before(wanted, netns, end, {}) if earlier else {}  # what another ADD of it has set stays
        request.undo(restore, netns, request.ifname, file, saved | there, found)
        became = netns.call(sysctl.write_all, sysctls)
        if end is not None:
            for key, value in settings.items():
                SETTERS[key](end, value)
        if became != sysctls or earlier:  # CHECK is to know how the kernel writes these values
            file.write(merge(earlier, {**saved, "became": became}))
        described = {key: settings[key] for key in ("mac", "mtu") if key in settings}
        return chained.change_interface(result, request.ifname, **described)

    def delete(self, request: DelRequest[TuningConf]) -> None:
        file = StateFile(request.conf.data_dir or DATA_DIR, request.attachment)
        saved, netns = file.find(), request.find_netns()
        try:
            # The path may lead to another container by now. The reference does not note what namespace it was.
            if saved and netns is not None and saved.get("netns") in (None, netns.identify()):
                restore(netns, request.ifname, file, saved)
        except (CNIError, AttributeError, TypeError, ValueError) as problem:  # of a file that no ADD wrote, too
            sys.stderr.write(f"not all is as it was before ADD: {problem}\n")
        file.delete()

    def check(self, request: CheckRequest[TuningConf]) -> None:
        settings, sysctls = wanted_by(request)
        netns = request.open_netns()
        end = link.get(request.ifname, netns) if settings else None
        for key, value in settings.items():
            if (there := getattr(end, key.lower())) != value:
                raise IOFailureError(f"{key} of interface {request.ifname} is {there}, not {value}")
        saved = StateFile(request.conf.data_dir or DATA_DIR, request.attachment).find() or {}
        there = netns.call(sysctl.get_all, sysctls)
        for key, value in sysctls.items():
            if not sysctl.same(there[key], value) and there[key] != saved.get("became", {}).get(key):
                raise IOFailureError(f"sysctl {key} is {there[key]}, not {value}")

    def gc(self, request: GCRequest[TuningConf]) -> None:
        delete_stale(request.conf.data_dir or DATA_DIR, request.network, request.valid_attachments)

    def status(self, request: StatusRequest[TuningConf]) -> None:
        sysctl.check_allowed(ALLOWLIST, request.conf.sysctl)


def wanted_by(request: AddRequest[TuningConf] | CheckRequest[TuningConf]) -> Wanted:
    """Return what a request asks for, from all its sources.

    Raises:
        InvalidConfigError: (7) A value or a sysctl's key is not possible.
    """
    conf, args = request.conf, request.conf.arguments
    mac = interface.requested_mac(request, "$.mac", "CNI_ARGS", "$.runtimeConfig.mac", "$.args.cni.mac")
    settings: dict[str, Any] = {"mac": mac}
    for key in ("promisc", "mtu", "allmulti", "txQLen"):
        given = getattr(args, key.lower())
        settings[key] = getattr(conf, key.lower()) if given is None else given
        if settings[key] is not None and not 0 <= settings[key] < 2**32:
            path = f"$.{'' if given is None else 'args.cni.'}{key}"
            raise InvalidConfigError(f"{path} is {shorten(settings[key])}, expected 0 to {2**32 - 1}")
    sysctls = {sysctl_path(key, request.ifname): value for key, value in {**conf.sysctl, **args.sysctl}.items()}
    return {key: value for key, value in settings.items() if value != UNSET.get(key)}, sysctls


def sysctl_path(key: str, ifname: str) -> str:
    """Return the path below ``/proc/sys`` that a key of ``sysctl`` stands for.

    Raises:
        InvalidConfigError: (7) It is none below ``net``.
    """
    path = sysctl.path_of(key).replace("IFNAME", ifname, 1)
    if not path.startswith("net/") or "\0" in path:
        raise InvalidConfigError(f'invalid net sysctl key: "{key}"', details="expected a key that begins with net.")
    return path


def values_before(wanted: Wanted, netns: NetNS, end: Link | None, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to restore: the values that are there, or that were `earlier`, before an ADD that has run."""
    settings, sysctls = wanted
    saved = {key: getattr(end, key.lower()) for key in settings}
    there = netns.call(sysctl.get_all, sysctls)
    ours = {**sysctls, **earlier.get("asked", {}), **earlier.get("became", {})}
    for values, now, before in ((settings, saved, earlier), (ours, there, earlier.get("sysctl", {}))):
        now |= {key: before[key] for key, value in now.items() if value == values[key] and key in before}
    return {**saved, "sysctl": there}


def merge(earlier: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what to keep: also what an ADD with other keys has saved, such as that of another tuning in the list."""
    parts = {key: {**earlier.get(key, {}), **saved.get(key, {})} for key in ("sysctl", "asked", "became")}
    return {**earlier, **saved, **parts}


def find_sharers(file: StateFile, saved: Mapping[str, Any], ifname: str) -> dict[str, list[dict[str, Any]]]:
    """Find by sysctl what the container's other interfaces saved that have set it, too. Others are left out."""
    keys = [key for key in saved.get("sysctl", {}) if ifname not in key.split("/")]  # others are of it alone
    others = file.find_others(saved.get("netns", "")) if keys else []
    found = {key: [each for each in others if key in each.get("sysctl", {})] for key in keys}
    return {key: sharers for key, sharers in found.items() if sharers}


def restore(
    netns: NetNS, ifname: str, file: StateFile, saved: Mapping[str, Any], found: Mapping[str, str] | None = None
) -> None:
    """Give the interface and the sysctls the values they had before. What is gone is fine.

    A sysctl that another interface has set too gets what an ADD that failed `found`, or a value that another asked for.
    """
    end = link.find(ifname, netns)
    values = {sysctl_path(key, ifname): was for key, was in saved.get("sysctl", {}).items()}  # only below net
    for key, sharers in find_sharers(file, saved, ifname).items():
        asked = [each[kind][key] for each in sharers for kind in ("became", "asked") if key in each.get(kind, {})]
        there = netns.call(sysctl.find, key) or ""
        kept = there if not asked or any(sysctl.same(there, each) for each in asked) else asked[-1]
        values[key] = (found or {}).get(key, kept)
    run_all(
        *(partial(netns.call, sysctl.ensure_if_present, key, value) for key, value in reversed(values.items())),
        *(partial(set_to, end, saved[key]) for key, set_to in SETTERS.items() if end is not None and key in saved),
    )


main = PluginMain(Tuning, "CNI tuning plugin v1.9.1")

if __name__ == "__main__":
    main()

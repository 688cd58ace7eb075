"""Masquerade what containers send beyond their network, with rules that name their owner.

Two backends, in the layouts of the reference plugins, so that either side removes what the other added:

* nftables: one rule an address in table ``inet cni_plugins_masquerade``, found again by its comment;
* iptables: a chain in the nat tables, named by a hash of the network and the container, with a jump an address.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Protocol

from ..errors import InvalidConfigError, IOFailureError, PluginNotAvailableError, run_all
from ..spec.addresses import IPInterface
from ..spec.names import Attachment, short_hash, shorten
from . import iptables, nft, program

_MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}


class Backend(Protocol):
    """Rules for the addresses of an attachment."""

    def add(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """Masquerade what these addresses send beyond their networks. Rules left by an earlier ADD are replaced."""

    def check(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """Raise :class:`IOFailureError` (5) unless the rules of these addresses are there."""

    def delete(self, attachment: Attachment, addresses: Collection[IPInterface] = ()) -> None:
        """Remove every rule of an attachment. Its addresses need not be known."""

    def gc(self, network: str, valid: Collection[Attachment]) -> None:
        """Remove the rules of a network's attachments that are not valid."""

    def status(self) -> None:
        """Raise :class:`PluginNotAvailableError` (50) unless rules can be added."""


def backend(name: str | None) -> Backend:
    """The backend a configuration asks for.

    Args:
        name: ``iptables`` or ``nftables``. None or empty: iptables where it is installed, otherwise nftables.

    Raises:
        InvalidConfigError: (7) There is no such backend.
    """
    if not name:
        name = "nftables" if program.find("iptables") is None and program.find("nft") is not None else "iptables"
    try:
        return _BACKENDS[name]
    except KeyError:
        raise InvalidConfigError(
            f"unknown ipmasq backend {shorten(name)}",
            details=f"$.ipMasqBackend: expected {' or '.join(_BACKENDS)}",
        ) from None


def delete(attachment: Attachment, addresses: Collection[IPInterface] = ()) -> None:
    """Remove the rules of an attachment, whichever backend made them: the configuration may have changed since.

    Raises:
        CNIError: One failed; the other has been tried nevertheless.
    """
    run_all(*(partial(each.delete, attachment, addresses) for each in _BACKENDS.values()))


def gc(network: str, valid: Collection[Attachment]) -> None:
    """Remove the rules of attachments that are not valid, whichever backend made them.

    Raises:
        CNIError: One failed; the other has been tried nevertheless.
    """
    run_all(*(partial(each.gc, network, valid) for each in _BACKENDS.values()))


def _by_family(addresses: Iterable[IPInterface]) -> dict[int, list[IPInterface]]:
    families: dict[int, list[IPInterface]] = {}
    for address in addresses:
        families.setdefault(address.version, []).append(address)
    return families


class NFTables:
    """Rules in a table of their own."""

    FAMILY, TABLE, CHAIN = "inet", "cni_plugins_masquerade", "masq_checks"

    def add(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """See :class:`Backend`."""
        where = f"{self.FAMILY} {self.TABLE}"
        commands = [
            f"add table {where}",
            f"add chain {where} {self.CHAIN}",
            f"add chain {where} postrouting {{ type nat hook postrouting priority srcnat ; policy accept ; }}",
            f"flush chain {where} postrouting",
            f"add rule {where} postrouting ip daddr {_MULTICAST[4]} return",
            f"add rule {where} postrouting ip6 daddr {_MULTICAST[6]} return",
            f"add rule {where} postrouting goto {self.CHAIN}",
        ]
        commands += self._deletions(self._rules_of(attachment))
        for address in addresses:
            keyword = "ip" if address.version == 4 else "ip6"
            commands.append(
                f"add rule {where} {self.CHAIN} {keyword} saddr {address.ip} {keyword} daddr != {address.network} "
                f'masquerade comment "{self.comment(attachment)}"'
            )
        nft.commit(commands)

    def check(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """See :class:`Backend`."""
        present = {_source(rule) for rule in self._rules_of(attachment) if _masquerades(rule)}
        for address in addresses:
            if str(address.ip) not in present:
                raise IOFailureError(
                    f"no masquerade rule for {address.ip} in nftables table {self.FAMILY} {self.TABLE}"
                )

    def delete(self, attachment: Attachment, addresses: Collection[IPInterface] = ()) -> None:
        """See :class:`Backend`."""
        nft.commit(self._deletions(self._rules_of(attachment)))

    def gc(self, network: str, valid: Collection[Attachment]) -> None:
        """See :class:`Backend`."""
        prefix = f"{short_hash(network, digits=16)}-"
        # Comments are cut to a length, but their hashes come first: compare those.
        kept = tuple(self._key(attachment) for attachment in valid)
        rules = nft.list_rules(self.FAMILY, self.TABLE, self.CHAIN)
        nft.commit(
            self._deletions(
                rule for rule in rules if rule.comment.startswith(prefix) and not rule.comment.startswith(kept)
            )
        )

    def status(self) -> None:
        """See :class:`Backend`."""
        if program.find("nft") is None:
            raise PluginNotAvailableError("ipMasq needs the program nft, which is not installed")

    @staticmethod
    def _key(attachment: Attachment) -> str:
        owner = short_hash(f"{attachment.ifname}:{attachment.container_id}", digits=16)
        return f"{short_hash(attachment.network, digits=16)}-{owner}"

    @classmethod
    def comment(cls, attachment: Attachment) -> str:
        """What marks the rules of an attachment: the reference's text, cut where it cuts."""
        network, container_id, ifname = attachment
        text = f"{cls._key(attachment)}, net: {network}, if: {nft.plain(ifname)}, id: {container_id}"
        return text[: nft.COMMENT_MAX]

    def _rules_of(self, attachment: Attachment) -> list[nft.Rule]:
        rules = nft.list_rules(self.FAMILY, self.TABLE, self.CHAIN)
        return [rule for rule in rules if rule.comment.startswith(self._key(attachment))]

    def _deletions(self, rules: Iterable[nft.Rule]) -> list[str]:
        return [f"delete rule {self.FAMILY} {self.TABLE} {self.CHAIN} handle {rule.handle}" for rule in rules]


def _source(rule: nft.Rule) -> str:
    for part in rule.expr:
        match = part.get("match", {}) if isinstance(part, dict) else {}
        if match.get("left", {}).get("payload", {}).get("field") == "saddr":
            return str(match["right"])
    return ""


def _masquerades(rule: nft.Rule) -> bool:
    return any(isinstance(part, dict) and "masquerade" in part for part in rule.expr)


class IPTables:
    """Chains in the nat tables of ``iptables`` and ``ip6tables``.

    The reference names the chain after network and container, so that two attachments of one container to one network
    share it, and deleting the first takes the second's rules away. Here the second gets a chain of its own.
    """

    POSTROUTING = "POSTROUTING"
    FAMILIES = (4, 6)

    def add(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """See :class:`Backend`."""
        for family, own in _by_family(addresses).items():
            rules = iptables.list_nat(family)
            chain = self._chain_to_use(attachment, rules)
            jump_comment, rule_comment = self._comments(attachment)
            lines = [f":{chain} - [0:0]"]
            lines += [f"-D {rule.chain} {rule.spec}" for rule in rules if rule.value("-j") == chain]
            for network in dict.fromkeys(address.network for address in own):
                lines.append(f"-A {chain} -d {network} {rule_comment} -j ACCEPT")
            lines.append(f"-A {chain} ! -d {_MULTICAST[family]} {rule_comment} -j MASQUERADE")
            lines += [f"-A {self.POSTROUTING} -s {address.ip} {jump_comment} -j {chain}" for address in own]
            iptables.commit(family, lines)

    def check(self, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
        """See :class:`Backend`."""
        for family, own in _by_family(addresses).items():
            rules = iptables.list_nat(family)
            chains = [chain for chain in chain_names(attachment) if self._owns(attachment, chain, rules)]
            for address in own:
                source = f"{address.ip}/{address.max_prefixlen}"
                jumps = [rule for rule in rules if rule.value("-j") in chains and rule.value("-s") == source]
                if not jumps:
                    raise IOFailureError(f"no masquerade rule for {address.ip} in the nat table of iptables")
                if not any(rule.chain == jumps[0].value("-j") and rule.value("-j") == "MASQUERADE" for rule in rules):
                    raise IOFailureError(
                        f"the masquerade chain {jumps[0].value('-j')} of {address.ip} does not masquerade"
                    )

    def delete(self, attachment: Attachment, addresses: Collection[IPInterface] = ()) -> None:
        """See :class:`Backend`."""
        chains = chain_names(attachment)
        for family in self.FAMILIES:
            if not any(iptables.may_have_chain(family, chain) for chain in chains):
                continue
            rules = iptables.try_list_nat(family)
            lines: list[str] = []
            for chain in chains:
                if self._owns(attachment, chain, rules):
                    lines += self._removal(chain, rules, addresses if not self._named(chain, rules) else ())
            iptables.commit(family, lines)

    def gc(self, network: str, valid: Collection[Attachment]) -> None:
        """See :class:`Backend`."""
        kept = {chain for attachment in valid for chain in chain_names(attachment)}
        for family in self.FAMILIES:
            if not (iptables.uses_legacy(family) or iptables.may_have_chain(family, self.POSTROUTING)):
                continue
            rules = iptables.try_list_nat(family)
            stale: list[str] = []
            for rule in rules:
                jump = rule.value("-j")
                if rule.chain == self.POSTROUTING and rule.value("--comment").startswith(f'name: "{network}" '):
                    alive = jump in kept and (
                        not self._named(jump, rules) or any(self._owns(each, jump, rules) for each in valid)
                    )
                    if not alive and jump not in stale:
                        stale.append(jump)
            iptables.commit(family, [line for chain in stale for line in self._removal(chain, rules)])

    def status(self) -> None:
        """See :class:`Backend`."""
        if program.find("iptables") is None:
            raise PluginNotAvailableError("ipMasq needs the program iptables, which is not installed")

    @staticmethod
    def _comments(attachment: Attachment) -> tuple[str, str]:
        """The comments of the jump and of the rules in the chain, as options.

        The jump's is the reference's to the letter, which looks for it when it deletes; the others name the interface
        too.
        """
        network, container_id, ifname = attachment._replace(ifname=nft.plain(attachment.ifname))
        room = _COMMENT_MAX - len(f'name: "{network}" id: "" if: "{ifname}"')
        owner = f'name: \\"{network}\\" id: \\"{container_id[: max(room, 0)]}\\"'
        return f'-m comment --comment "{owner}"', f'-m comment --comment "{owner} if: \\"{ifname}\\""'

    def _chain_to_use(self, attachment: Attachment, rules: Sequence[iptables.NatRule]) -> str:
        shared, own = chain_names(attachment)
        taken = any(rule.chain == shared for rule in rules) and not self._is_named_for(attachment, shared, rules)
        return own if taken else shared

    def _owns(self, attachment: Attachment, chain: str, rules: Sequence[iptables.NatRule]) -> bool:
        """Does a chain exist and belong to the attachment? One the reference made belongs to all of the container's."""
        if not any(rule.chain == chain for rule in rules):
            return False
        return not self._named(chain, rules) or self._is_named_for(attachment, chain, rules)

    @staticmethod
    def _named(chain: str, rules: Sequence[iptables.NatRule]) -> bool:
        return any(rule.chain == chain and ' if: "' in rule.value("--comment") for rule in rules)

    @staticmethod
    def _is_named_for(attachment: Attachment, chain: str, rules: Sequence[iptables.NatRule]) -> bool:
        mark = f' if: "{nft.plain(attachment.ifname)}"'
        return any(rule.chain == chain and rule.value("--comment").endswith(mark) for rule in rules)

    def _removal(
        self, chain: str, rules: Sequence[iptables.NatRule], addresses: Collection[IPInterface] = ()
    ) -> list[str]:
        """Lines that remove a chain; with addresses, only their jumps, and the chain if no other jump is left."""
        jumps = [rule for rule in rules if rule.value("-j") == chain]
        sources = {f"{address.ip}/{address.max_prefixlen}" for address in addresses}
        going = [rule for rule in jumps if not sources or rule.value("-s") in sources]
        lines = [f"-D {rule.chain} {rule.spec}" for rule in going]
        if len(going) == len(jumps):
            lines += [f"-F {chain}", f"-X {chain}"]
        return lines


_COMMENT_MAX = 255  # of xt_comment, in bytes


def chain_names(attachment: Attachment) -> tuple[str, str]:
    """The chain of the reference, and the one for a further attachment of the same container to the same network."""
    network, container_id, ifname = attachment
    return (
        f"CNI-{short_hash(network + container_id, digits=24)}",
        f"CNI-{short_hash(network, container_id, ifname, digits=24)}",
    )


_BACKENDS: dict[str, Backend] = {"iptables": IPTables(), "nftables": NFTables()}

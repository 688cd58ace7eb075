"""Messages and options byte by byte: the RFCs' examples, scapy's reading and writing, and damage."""

import json
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP

from cnisdk.dhcp import _packet as packet, options
from cnisdk.dhcp._packet import Message
from cnisdk.dhcp.lease import DHCPLease
from cnisdk.errors import InvalidConfigError
from cnisdk.spec.codec import dumps

MAC = "02:42:ac:11:00:02"
ADDRESS, SERVER = IPv4Address("10.1.0.50"), IPv4Address("10.1.0.1")

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may be busy
macs = st.binary(min_size=6, max_size=6).map(packet.format_mac)
addresses = st.ip_addresses(v=4)
# Options whose values scapy leaves as they are.
told = st.dictionaries(st.sampled_from([61, 77, 60, 43, 125, 224]), st.binary(min_size=1, max_size=255), max_size=3)


@unhurried
@given(st.sampled_from(sorted(packet.KINDS)), st.integers(0, 2**32 - 1), macs, told, addresses, st.booleans())
def test_scapy_reads_what_we_write(
    kind: int, xid: int, mac: str, given_options: dict[int, bytes], ciaddr: IPv4Address, broadcast: bool
) -> None:
    message = Message(kind, xid, mac, given_options, secs=7, broadcast=broadcast, ciaddr=ciaddr)
    read = IP(packet.encode_datagram(packet.encode(message), ciaddr, SERVER))
    assert (read.src, read.dst, read[UDP].sport, read[UDP].dport) == (str(ciaddr), str(SERVER), 68, 67)
    bootp = read[BOOTP]
    assert (bootp.op, bootp.xid, bootp.secs, bootp.ciaddr) == (1, xid, 7, str(ciaddr))
    assert (bootp.chaddr[:6], bool(bootp.flags & 0x8000)) == (packet.pack_mac(mac), broadcast)
    assert ("message-type", kind) in read[DHCP].options
    # Both checksums are what scapy would have computed.
    sums = read.chksum, read[UDP].chksum
    del read.chksum, read[UDP].chksum
    again = IP(bytes(read))
    assert (again.chksum, again[UDP].chksum) == sums


@unhurried
@given(st.integers(0, 2**32 - 1), macs, told, addresses)
def test_we_read_what_scapy_writes(xid: int, mac: str, given_options: dict[int, bytes], yiaddr: IPv4Address) -> None:
    written = [("message-type", "offer"), ("server_id", str(SERVER)), *given_options.items(), "end", "pad", "pad"]
    bootp = BOOTP(op=2, xid=xid, chaddr=packet.pack_mac(mac), yiaddr=str(yiaddr))
    frame = bytes(IP(src=str(SERVER), dst=str(yiaddr)) / UDP(sport=67, dport=68) / bootp / DHCP(options=written))
    payload = packet.decode_datagram(frame)
    assert payload is not None
    message = packet.decode(payload)
    assert message is not None
    assert message == Message(packet.OFFER, xid, mac, {54: SERVER.packed, **given_options}, yiaddr=yiaddr)


def test_a_probe_and_who_objects() -> None:
    probe = ARP(packet.encode_arp_probe(MAC, ADDRESS))
    assert (probe.op, probe.hwsrc, probe.psrc, probe.hwdst, probe.pdst) == (
        1,
        MAC,
        "0.0.0.0",
        "00:00:00:00:00:00",
        str(ADDRESS),
    )
    other, elsewhere = "02:00:00:00:00:09", "10.1.0.51"
    for op, sender, sender_ip, target_ip, expected in (
        (2, other, str(ADDRESS), "0.0.0.0", other),  # it answers that it has the address
        (1, other, str(ADDRESS), elsewhere, other),  # it asks for another, and has this
        (1, other, "0.0.0.0", str(ADDRESS), other),  # it probes for it at the same time
        (1, other, elsewhere, str(ADDRESS), None),  # it asks for the address, as a router does
        (2, MAC, str(ADDRESS), "0.0.0.0", None),  # this host itself
        (2, other, elsewhere, str(ADDRESS), None),
    ):
        heard = bytes(ARP(op=op, hwsrc=sender, psrc=sender_ip, pdst=target_ip))
        assert packet.find_conflict(heard, MAC, ADDRESS) == expected
        assert packet.find_conflict(heard[:20], MAC, ADDRESS) is None


def test_overloaded_and_split_options() -> None:
    """RFC 2132, section 9.3, and RFC 3396: the options go on in `file`, then in `sname`; parts of one are joined."""
    fixed = bytearray(bytes(BOOTP(op=2, chaddr=packet.pack_mac(MAC)))[:236])
    fixed[44:48] = bytes([15, 2]) + b"le"  # sname
    fixed[108:115] = bytes([15, 3]) + b"exa" + bytes([0, 255])
    fixed[115] = 15  # behind the end
    data = bytes(fixed) + bytes([99, 130, 83, 99, 53, 1, 5, 52, 1, 3, 15, 1]) + b"." + bytes([255])
    message = packet.decode(data)
    assert message is not None
    assert message.options[15] == b".exa" + b"le"
    without = packet.decode(data.replace(bytes([52, 1, 3]), bytes([52, 1, 1])))
    assert without is not None
    assert without.options[15] == b".exa"


@unhurried
@given(st.data())
def test_damage_is_no_message(data: st.DataObject) -> None:
    """Cut or changed anywhere, bytes are a message or none: nothing raises. The checksums find changes."""
    bootp = BOOTP(op=2, chaddr=packet.pack_mac(MAC)) / DHCP(options=[("message-type", "ack"), ("router", "1.2.3.4")])
    frame = bytearray(bytes(IP(src="10.1.0.1", dst="10.1.0.50") / UDP(sport=67, dport=68) / bootp))
    end = data.draw(st.integers(0, len(frame) - 1))
    assert packet.decode_datagram(bytes(frame[:end])) is None
    assert packet.decode_datagram(bytes(frame) + b"padding") is not None
    packet.decode(bytes(frame[28:end]))
    place, bit = data.draw(st.integers(0, len(frame) - 1)), data.draw(st.integers(0, 7))
    frame[place] ^= 1 << bit
    if place not in (26, 27):  # a checksum of zero means none, and scapy's own may be that but for a bit
        assert packet.decode_datagram(bytes(frame)) is None


@unhurried
@given(st.binary(max_size=400))
def test_any_bytes_are_read(junk: bytes) -> None:
    packet.decode(junk)
    packet.decode_datagram(junk, checked=True)
    packet.find_conflict(junk, MAC, ADDRESS)
    found = dict.fromkeys((1, 3, 6, 15, 26, 33, 119, 121), junk)
    for read in (options.read_classless_routes, options.read_static_routes, options.read_domains):
        read(found)
    assert options.read_prefix_length(found) in (None, *range(33))


# --- options ----------------------------------------------------------------------------------------------------------


def test_classless_routes_of_rfc_3442() -> None:
    """The table of the RFC's descriptors, each with the same router."""
    router = bytes([10, 0, 0, 1])
    for descriptor, expected in (
        ([0], "0.0.0.0/0"),
        ([8, 10], "10.0.0.0/8"),
        ([24, 10, 0, 0], "10.0.0.0/24"),
        ([16, 10, 17], "10.17.0.0/16"),
        ([24, 10, 27, 129], "10.27.129.0/24"),
        ([25, 10, 229, 0, 128], "10.229.0.128/25"),
        ([32, 10, 198, 122, 47], "10.198.122.47/32"),
    ):
        value = bytes(descriptor) + router
        assert options.read_classless_routes({121: value}) == ((IPv4Network(expected), IPv4Address("10.0.0.1")),)
        for broken in (value[:-1], bytes([33, *descriptor[1:]]) + router):
            assert options.read_classless_routes({121: bytes([0]) + router + broken}) == (
                (IPv4Network("0.0.0.0/0"), IPv4Address("10.0.0.1")),
            )


def test_static_routes_go_by_class() -> None:
    value = b"".join(
        IPv4Address(each).packed
        for each in ("10.0.0.0", "10.1.0.1", "172.16.0.0", "10.1.0.2", "192.168.7.0", "10.1.0.3", "0.0.0.0", "10.1.0.4")
    )
    assert [str(dst) for dst, _ in options.read_static_routes({33: value})] == [
        "10.0.0.0/8",
        "172.16.0.0/16",
        "192.168.7.0/24",
    ]


def test_search_domains_of_rfc_3397() -> None:
    """The RFC's example: two names that share an end, the second with a pointer."""
    value = b"\x03eng\x05apple\x03com\x00\x09marketing\xc0\x04"
    assert options.read_domains({119: value}) == ("eng.apple.com", "marketing.apple.com")
    for broken in (
        b"\x03eng\xc0\x03",
        b"\xc0",
        b"\x05ab",
        b"\x03a\nb\x00",
        b"\x03a b\x00",
        b"\x40" + b"a" * 64 + b"\x00",
    ):
        assert options.read_domains({119: b"\x01a\x00" + broken}) == ("a",)


@pytest.mark.parametrize(
    ("mask", "expected"), [("ffffff00", 24), ("ffffffff", 32), ("00000000", 0), ("ff00ff00", None), ("ffff", None)]
)
def test_masks(mask: str, expected: int | None) -> None:
    assert options.read_prefix_length({1: bytes.fromhex(mask)}) == expected


@pytest.mark.parametrize(
    ("name", "expected"), [("routers", 3), ("121", 121), ("255", 255), ("dhcp-client-identifier", 61)]
)
def test_names_of_options(name: str, expected: int) -> None:
    assert options.parse_option(name, "$.x") == expected


@pytest.mark.parametrize("name", ["", "256", "-1", "router", "²"])
def test_no_options(name: str) -> None:
    with pytest.raises(InvalidConfigError, match=r"Can not parse option .*\$\.x"):
        options.parse_option(name, "$.x")


@pytest.mark.parametrize(("number", "value"), [(53, b"x"), (54, b"x"), (0, b""), (60, b"x" * 256)])
def test_options_that_cannot_be_provided(number: int, value: bytes) -> None:
    with pytest.raises(InvalidConfigError, match=r"\$\.y"):
        options.check_provided(number, value, "$.y")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"example.org\0", "example.org"),
        (b"example.org.", "example.org"),
        (b"", ""),
        (b"a..b", ""),
        (b"a b", ""),
        (b"a\nnameserver 192.0.2.1", ""),
        (b"\xc3\xa4.org", ""),
        (b"a" * 64, ""),
        (b"a." * 128, ""),
    ],
)
def test_domains(sent: bytes, expected: str) -> None:
    assert options.read_domain({15: sent}) == expected


def test_a_name_that_pointers_make_endless() -> None:
    """Each of hundreds of pointers means the same long name, and none a longer one than names can be."""
    long = (b"\x3f" + b"a" * 63) * 3 + b"\x3d" + b"a" * 61 + b"\x00"
    assert [len(each) for each in options.read_domains({119: long + b"\xc0\x00" * 300})] == [253]
    assert options.read_domains({119: b"\x01b" + long + b"\xc0\x00" * 300}) == ()


def test_text() -> None:
    assert options.read_text({15: b"example.org\0"}, 15) == "example.org"
    assert options.read_text({15: b"a\nb"}, 15) == ""
    assert options.read_text({15: b"\xff"}, 15) == ""


# --- a server that means harm -----------------------------------------------------------------------------------------

values = st.one_of(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.integers(0, 255).map(bytes))
anything = st.dictionaries(st.integers(1, 254), values) | st.fixed_dictionaries(
    dict.fromkeys((1, 3, 6, 15, 26, 33, 51, 54, 58, 59, 119, 121), values)
)


@unhurried
@given(anything, addresses, st.booleans())
def test_any_lease_is_used_or_refused(found: dict[int, bytes], address: IPv4Address, masked: bool) -> None:
    """Every option with every length: a lease that is not refused has a result, times in order, and a file."""
    sound = {1: bytes([255, 255, 255, 0]), 54: SERVER.packed} if masked else {}
    lease = DHCPLease(address=address, options={**found, **sound}, started=1000.0)
    if lease.find_problem() is not None:
        return
    result = lease.to_result(7)
    assert result.ips[0].address.ip == address
    assert json.loads(dumps(result))["ips"]
    assert 1000 < lease.renews <= lease.rebinds <= lease.expires
    assert 0 <= lease.mtu <= 0xFFFFFFFF
    assert DHCPLease.from_json(json.loads(json.dumps(lease.to_json()))) == lease


@unhurried
@given(st.binary(max_size=1200), st.binary(min_size=64, max_size=64), st.binary(min_size=128, max_size=128))
def test_fields_of_options_in_any_order(options_field: bytes, sname: bytes, file: bytes) -> None:
    """Option 52 anywhere, also in the fields that it tells of: each field is read once at most."""
    fixed = bytearray(bytes(BOOTP(op=2, chaddr=packet.pack_mac(MAC)))[:236])
    fixed[44:108], fixed[108:236] = sname, file
    overloaded = bytes([53, 1, 2, 52, 1, 3])
    message = packet.decode(bytes(fixed) + bytes([99, 130, 83, 99]) + overloaded + options_field)
    if message is not None:
        assert sum(map(len, message.options.values())) <= len(options_field) + len(sname) + len(file)
        assert options.MESSAGE_TYPE not in message.options

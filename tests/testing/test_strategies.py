"""Values that the strategies make are allowed by the specification, and survive a round trip."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk import CNIError, NetConf, Result, spec
from cnisdk.spec import (
    DNS,
    Bandwidth,
    Interface,
    IPAMConf,
    IPConfig,
    IPRange,
    PortMapping,
    Result020,
    Result040,
    Result100,
    Route,
    RuntimeConfig,
    RuntimeDNS,
    SpecVersion,
    convert_result,
    parse_args,
    parse_result,
    print_result,
    structure,
    unstructure,
    upgrade,
)
from cnisdk.spec.config import NetConfList
from cnisdk.spec.names import Attachment, check_container_id, check_ifname, check_network_name
from cnisdk.spec.versions import V0_2_0, V0_4_0, V1_0_0, V1_1_0
from cnisdk.testing import strategies as cni

# How long it takes to make an example says more about the machine than about the strategy.
calmly = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(cni.attachments())
def test_names(attachment: Attachment) -> None:
    check_network_name(attachment.network)
    check_container_id(attachment.container_id)
    check_ifname(attachment.ifname)


@calmly
@given(cni.results())
def test_results(result: Result) -> None:
    assert parse_result(print_result(result), "1.1.0") == result


@calmly
@given(st.sampled_from([V1_0_0, V1_1_0]).flatmap(lambda version: st.tuples(st.just(version), cni.results(version))))
def test_results_of_a_version(made: tuple[SpecVersion, Result]) -> None:
    version, result = made
    conversion = convert_result(result, version)
    assert not [lost for lost in conversion.lost if lost.path.startswith("$.interfaces")]
    assert upgrade(conversion.result).ips == result.ips


@calmly
@given(cni.configurations(type="bridge"))
def test_configurations(conf: NetConf) -> None:
    assert conf.type == "bridge"
    assert structure(unstructure(conf), NetConf) == conf


@calmly
@given(cni.configuration_lists())
def test_configuration_lists(conf: NetConfList) -> None:
    assert structure(unstructure(conf), NetConfList) == conf


MADE: dict[type, st.SearchStrategy[Any]] = {
    Attachment: cni.attachments(),
    Bandwidth: cni.bandwidths(),
    DNS: cni.dns(),
    IPAMConf: cni.configurations().map(lambda conf: conf.ipam),
    IPConfig: cni.ip_configs(),
    IPRange: cni.ip_ranges(),
    Interface: cni.interfaces(),
    NetConf: cni.configurations(),
    NetConfList: cni.configuration_lists(),
    PortMapping: cni.port_mappings(),
    Result: cni.results(),
    Result020: cni.results_of(V0_2_0),
    Result040: cni.results_of(V0_4_0),
    Result100: cni.results_of(V1_0_0),
    Route: cni.routes(),
    RuntimeConfig: cni.runtime_configs(),
    RuntimeDNS: cni.runtime_dns(),
    SpecVersion: cni.versions(),
}


def test_every_object_of_the_specification_is_made() -> None:
    offered = {getattr(spec, name) for name in re.findall(r"(\w+) as \1\b", Path(spec.__file__).read_text())}
    assert {each for each in offered if isinstance(each, type) and attrs.has(each)} <= MADE.keys()


@calmly
@given(st.sampled_from(sorted(MADE, key=str)).flatmap(lambda cls: st.tuples(st.just(cls), MADE[cls])))
def test_they_survive_a_round_trip(made: tuple[type[object], object]) -> None:
    cls, value = made
    assert isinstance(value, cls)
    if attrs.has(cls):
        assert structure(unstructure(value), cls) == value


@given(cni.cni_args())
def test_arguments(text: str) -> None:
    assert len(parse_args(text)) == (text.count(";") + 1 if text else 0)


@given(cni.errors())
def test_errors(error: CNIError) -> None:
    assert error.code in {1, 2, 3, 4, 5, 6, 7, 11, 50, 51} or error.code >= 100
    with pytest.raises(CNIError):
        raise error

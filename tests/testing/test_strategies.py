"""What the strategies make is what the specification allows, and survives a round trip."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from cnisdk import CNIError, NetConf, Result
from cnisdk.spec import SpecVersion, convert_result, parse_result, print_result, structure, unstructure, upgrade
from cnisdk.spec.config import NetConfList
from cnisdk.spec.names import Attachment, check_container_id, check_ifname, check_network_name
from cnisdk.spec.versions import V1_0_0, V1_1_0
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


@given(cni.errors())
def test_errors(error: CNIError) -> None:
    assert error.code in {1, 2, 3, 4, 5, 6, 7, 11, 50, 51} or error.code >= 100
    with pytest.raises(CNIError):
        raise error

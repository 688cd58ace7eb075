"""An error that differs from the expected one is shown whole."""

from __future__ import annotations

import pytest

from cnisdk.errors import CNIError, InvalidConfigError
from cnisdk.testing import expect_error


def test_the_expected_error_is_handed_on() -> None:
    with expect_error(7, "$.mtu", "68 at least") as expected:
        raise InvalidConfigError("$.mtu is -1", details="68 at least")
    assert expected.error.msg == "$.mtu is -1"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (InvalidConfigError("$.mtu is -1"), "that says 'eth0'\ngot code 7: $.mtu is -1"),
        (CNIError("no eth0", details="try again"), "that says 'eth0'\ngot code 100: no eth0; try again"),
    ],
)
def test_another_error_is_shown(error: CNIError, shown: str) -> None:
    with pytest.raises(AssertionError) as raised, expect_error(7, "eth0"):
        raise error
    assert str(raised.value) == f"expected an error with code 7, {shown}"
    assert raised.value.__cause__ is error


def test_a_success_is_no_error() -> None:
    with pytest.raises(AssertionError, match="got no error"), expect_error(7):
        pass


def test_another_exception_passes() -> None:
    with pytest.raises(ZeroDivisionError), expect_error(7):
        1 / 0  # noqa: B018

"""Each policy's story in the log."""

import pytest

from kube_router_py.firewall.telling import tell_policies
from kube_router_py.object_key import Key
from kube_router_py.observe.log_fields import fields, values


def test_policies_that_come_and_go_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stands, gone = Key("NetworkPolicy", "shop/allow"), Key("NetworkPolicy", "shop/old")
    tell_policies({stands, gone, Key("Pod", "shop/web")}, {stands})
    assert [each.getMessage() for each in caplog.records] == [
        "programmed policy=shop/allow",
        "the policy is gone policy=shop/old",
    ]
    told = dict(fields(values(caplog.records[0].msg, caplog.records[0].args)))
    assert (told["KUBE_OBJECT"], told["KUBE_KIND"]) == ("shop/allow", "NetworkPolicy")


def test_of_very_many_policies_some_are_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tell_policies({Key("NetworkPolicy", f"shop/p{number}") for number in range(50)}, ())
    assert len(caplog.records) == 21
    assert caplog.records[-1].getMessage() == "programmed more policies count=30"

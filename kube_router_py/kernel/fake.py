"""Stateful fakes of the host adapters, for tests and dry runs."""

from kube_router_py.kernel.fake_ipvs import FakeIpvs as FakeIpvs

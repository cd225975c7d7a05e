"""Stateful fakes of the host adapters, for tests and dry runs."""

from kube_router_py.kernel.fake_conntrack import FakeConntrack as FakeConntrack
from kube_router_py.kernel.fake_host import FakeIpsets as FakeIpsets
from kube_router_py.kernel.fake_host import FakeIptables as FakeIptables
from kube_router_py.kernel.fake_host import FakeLinks as FakeLinks
from kube_router_py.kernel.fake_host import FakeSysctls as FakeSysctls
from kube_router_py.kernel.fake_ipvs import FakeIpvs as FakeIpvs

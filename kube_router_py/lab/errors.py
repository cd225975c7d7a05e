"""What can go wrong in the lab itself."""

from kube_router_py.errors import KubeRouterError


class LabError(KubeRouterError):
    """The lab cannot be built or asked; the message names what failed and where to look."""

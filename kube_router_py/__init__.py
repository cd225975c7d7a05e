"""One agent per Kubernetes node: service proxy, network policy, BGP routes, load balancer."""

__version__ = "0.1.0"

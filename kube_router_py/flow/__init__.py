"""The way of one flow through the cluster: names, Services, policies, source NAT, routes."""

"""The firewall: NetworkPolicies compiled to iptables chains and ipsets of this node."""

"""Adapters to one host: netlink, IPVS, routes, sets, rules, sysctls, and their fakes."""

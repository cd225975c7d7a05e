"""A whole cluster on one machine, out of network namespaces. Not part of the agent."""

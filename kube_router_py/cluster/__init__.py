"""The shared informer cache: what the API server says, in memory, decoded once."""

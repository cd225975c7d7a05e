"""Addresses of Services of type LoadBalancer: who gets which, and which node answers for it."""

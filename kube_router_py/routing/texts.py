"""Texts from outside, as all parts read and quote them. Pure."""

from kube_router_py.texts import annotation_field, parse_boolean, shown

__all__ = ["annotation_field", "parse_boolean", "shown"]

"""Compile how a Service's virtual servers choose: scheduler, its flags, session affinity. Pure."""

from collections.abc import Iterable

from kube_router_py.cluster.objects import Service
from kube_router_py.proxy.model import Flag, RealServer, VirtualServer
from kube_router_py.proxy.settings import ProxyOptions
from kube_router_py.service_addresses import Report

SCHEDULER_ANNOTATION = "kube-router.io/service.scheduler"
SCHEDULER_FLAGS_ANNOTATION = "kube-router.io/service.schedflags"

DEFAULT_SCHEDULER = "rr"
# What takes its place where real servers differ in weight, which rr does not look at.
WEIGHTED_SCHEDULER = "wrr"
# net/netfilter/ipvs/ip_vs_*.c
SCHEDULERS = frozenset(
    "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh twos".split()  # noqa: SIM905 - reads better
)
# They hash clients to real servers, of which one that drains (weight 0) would refuse its share:
# with SCHED1 (IP_VS_SVC_F_SCHED_SH_FALLBACK, _MH_FALLBACK) they go on to the next one.
_HASHING = frozenset(("sh", "mh"))
# Hashes by the VIP, so that one real server has all clients, and knows no next one.
WITHOUT_DRAINING = "dh"
_SCHEDULER_FLAGS = {"flag-1": Flag.SCHED1, "flag-2": Flag.SCHED2, "flag-3": Flag.SCHED3}

DEFAULT_AFFINITY_S = 10800
_MAX_AFFINITY_S = 86400


def compile_scheduling(service: Service, options: ProxyOptions, report: Report) -> VirtualServer:
    """What all virtual servers of a Service share; ``report`` gets (field, reason)."""
    scheduler = service.metadata.annotation(SCHEDULER_ANNOTATION) or DEFAULT_SCHEDULER
    field = f"metadata.annotations[{SCHEDULER_ANNOTATION}]"
    if scheduler not in SCHEDULERS:
        report(field, f"{scheduler!r} is no IPVS scheduler; {DEFAULT_SCHEDULER} is used instead")
        scheduler = DEFAULT_SCHEDULER
    elif scheduler in options.unloadable_schedulers:
        report(
            field,
            f"the kernel cannot load {scheduler!r} (module ip_vs_{scheduler}); "
            f"{DEFAULT_SCHEDULER} is used instead",
        )
        scheduler = DEFAULT_SCHEDULER
    return VirtualServer(
        scheduler=scheduler,
        flags=_compile_flags(service, scheduler, report),
        persistence_s=_compile_persistence(service, report),
    )


def weigh(
    service: Service,
    config: VirtualServer,
    reals: Iterable[RealServer],
    options: ProxyOptions,
    report: Report,
) -> VirtualServer:
    """The parameters for these real servers: where they differ in weight and the Service does not
    name a scheduler, one that looks at weights. (Weight 0 every scheduler leaves out.)"""
    if service.metadata.annotation(SCHEDULER_ANNOTATION):
        return config
    if len({real.weight for real in reals if real.weight}) < 2:
        return config
    if WEIGHTED_SCHEDULER in options.unloadable_schedulers:
        report(
            "",
            f"the weights of its backends' Nodes have no effect: the kernel cannot load "
            f"{WEIGHTED_SCHEDULER!r} (module ip_vs_{WEIGHTED_SCHEDULER}); "
            f"{DEFAULT_SCHEDULER} is used instead",
        )
        return config
    return VirtualServer(WEIGHTED_SCHEDULER, config.flags, config.persistence_s)


def _compile_flags(service: Service, scheduler: str, report: Report) -> int:
    text = service.metadata.annotation(SCHEDULER_FLAGS_ANNOTATION)
    flags = int(Flag.SCHED1) if scheduler in _HASHING else 0
    if not text:
        return flags
    field = f"metadata.annotations[{SCHEDULER_FLAGS_ANNOTATION}]"
    if scheduler not in _HASHING:
        report(field, f"scheduler flags have a meaning for sh and mh only, not for {scheduler}")
        return 0
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name in _SCHEDULER_FLAGS:
            flags |= int(_SCHEDULER_FLAGS[name])
        else:
            report(field, f"{name!r} is none of {', '.join(_SCHEDULER_FLAGS)}")
    return flags


def _compile_persistence(service: Service, report: Report) -> int:
    spec = service.spec
    if spec.session_affinity in (None, "", "None"):
        return 0
    if spec.session_affinity != "ClientIP":
        report("spec.sessionAffinity", f"{spec.session_affinity!r} is not None or ClientIP")
        return 0
    client_ip = spec.session_affinity_config and spec.session_affinity_config.client_ip
    timeout_s = client_ip.timeout_seconds if client_ip else None
    if timeout_s is None:
        return DEFAULT_AFFINITY_S
    if not 0 < timeout_s <= _MAX_AFFINITY_S:
        report(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            f"{timeout_s} is not within 1-{_MAX_AFFINITY_S} s; {DEFAULT_AFFINITY_S} is used",
        )
        return DEFAULT_AFFINITY_S
    return timeout_s

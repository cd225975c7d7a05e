"""Metrics of the firewall."""

from kube_router_py.observe.catalogue.model import Section, counter, gauge, histogram

SECTIONS = (
    Section(
        "Network policies",
        (
            counter(
                "policy_hits_total",
                "packets that a policy admitted: the first ones of connections, since what belongs "
                "to a known connection is not looked at. Where several policies would admit, the "
                "one that comes first by name counts",
                *("namespace", "policy", "direction"),
            ),
            counter(
                "policy_drops_total",
                "packets that no policy of a pod of this node admitted; `verdict` is `refused`, or "
                "`audited` where they were let pass because an audit is on; `direction` is "
                "`ingress` or `egress`",
                *("namespace", "pod", "direction", "verdict"),
            ),
            gauge(
                "policy_series_dropped",
                "policies and pods beyond the 2000 series of `policy_hits_total` and "
                "`policy_drops_total` each: their packets are added up under the name `other`",
            ),
            gauge(
                "firewall_audited_pods",
                "pods of this node that an audit keeps from being isolated in a direction at least",
            ),
            counter(
                "drop_records_total",
                "packets that the kernel reported as refused, or audited (it reports some of many)",
            ),
            counter(
                "drop_records_lost_total",
                "such reports that could not be read or told in time",
            ),
            gauge(
                "controller_policy_chains",
                "chains of policies on this node, each direction counted once",
            ),
            gauge("controller_policy_ipsets", "sets that the rules of policies refer to"),
            counter(
                "controller_policy_drift_total",
                "sets, chains and jumps that others had changed and that were put right",
            ),
            histogram(
                "controller_iptables_sync_time",
                "duration of the firewall's turns, under kube-router's name",
            ),
            histogram(
                "controller_policy_chains_sync_time",
                "how long a turn took to bring chains and sets to the kernel",
            ),
            histogram(
                "controller_iptables_v4_save_time",
                "duration of one run of `iptables-save`, by the firewall",
            ),
            histogram("controller_iptables_v6_save_time", "the same of `ip6tables-save`"),
            histogram(
                "controller_iptables_v4_restore_time",
                "duration of one run of `iptables-restore`, by the firewall: one commit",
            ),
            histogram("controller_iptables_v6_restore_time", "the same of `ip6tables-restore`"),
            histogram(
                "controller_policy_ipset_v4_restore_time",
                "duration of one run of `ipset restore` by the firewall in which sets of IPv4 "
                "changed. One run has the sets of both families: it counts for both then",
            ),
            histogram("controller_policy_ipset_v6_restore_time", "the same for sets of IPv6"),
        ),
        before=(
            "Hits and drops come from the counters of the rules themselves, which a scrape reads "
            "no more than every 15 s (with the nft variant of iptables that means listing the "
            "table). Those restart from zero whenever the agent rewrites a chain; what the agent "
            "shows goes on counting. It starts from zero with the agent, and what was counted "
            "between the last scrape and the rewriting of a chain is lost. Only pods of this node "
            "have series; those of a pod, or of a policy, that is gone end after five minutes. "
            "What is logged packet by packet is told by `kube-router-py drops`.",
        ),
        flag="--run-firewall",
    ),
)

"""Metrics that every agent has."""

from kube_router_py.observe.catalogue.model import Section, counter, gauge, histogram

SECTIONS = (
    Section(
        "The loops",
        (
            gauge("controller_ready", "as `/readyz`", "loop"),
            gauge("controller_dirty_keys", "keys waiting; should return to 0", "loop"),
            gauge(
                "controller_oldest_dirty_seconds",
                "for how long the key that waits longest has been waiting or failing; 0: none "
                "waits",
                "loop",
            ),
            histogram(
                "controller_programming_duration_seconds",
                "from the moment a change was told to a loop until a turn succeeded with it; one "
                "observation for each key",
                "loop",
            ),
            gauge("controller_problems", "objects with something wrong", "loop"),
            gauge(
                "problems",
                "the same by the kind of the object: `Service`, `Node` and so on",
                *("loop", "kind"),
            ),
            counter("controller_turns_total", "turns", "loop"),
            counter("controller_successes_total", "turns after which nothing was failing", "loop"),
            counter("controller_restarts_total", "escaped exceptions", "loop"),
            histogram(
                "controller_turn_seconds",
                'duration of turns; `full="true"`: with reading the kernel back',
                *("loop", "full"),
            ),
            counter("kernel_writes_total", "changes sent to the kernel", "adapter"),
            counter(
                "drift_repairs_total",
                "those that a periodic comparison with the kernel made although no object had "
                "changed: somebody else had. Comparisons that fall together with changes of "
                "objects are not counted",
                *("loop", "adapter"),
            ),
        ),
        before=(
            "Loops are `service-proxy`, `firewall`, `router`, `loadbalancer` and `layer2`, as far "
            "as they run.",
        ),
    ),
    Section(
        "The API server",
        (
            gauge("cache_objects", "objects known", "kind"),
            gauge("cache_synced", "1 once the kind was listed completely", "kind"),
            gauge(
                "cache_stale_seconds", "since the API server last said anything about it", "kind"
            ),
            gauge("cache_problems", "objects that could not be decoded", "kind"),
            counter("cache_watch_events_total", "events received, bookmarks included", "kind"),
            counter("cache_changes_total", "changes told to the loops", "kind"),
            counter("cache_relists_total", "complete lists", "kind"),
            counter("cache_errors_total", "failures of lists and watches", "kind", "reason"),
            counter(
                "api_requests_total",
                "requests sent to API servers; `code` is the HTTP status, or `none` where no "
                "server answered",
                *("method", "code"),
            ),
            histogram(
                "api_request_duration_seconds",
                "until the first byte of the answer; of a watch, until it stands",
                "method",
            ),
            counter(
                "events_dropped_total",
                "Events (about refused addresses, and about what is wrong with BGP or the pod "
                "network) that had no room in the queue; they are tried again",
            ),
        ),
    ),
    Section(
        "The node",
        (
            gauge("conntrack_entries", "connections that the kernel tracks"),
            gauge(
                "conntrack_entries_max",
                "how many it has room for; what comes then is dropped (`nf_conntrack_max`)",
            ),
            counter(
                "log_records_dropped_total",
                "records of the log that the node's journal did not take; `--log-journal`",
            ),
            counter(
                "scrape_failures_total",
                "scrapes that lack the metrics of a collector, since it failed: the log says why. "
                "The others are there",
                "collector",
            ),
            gauge("build_info", "always 1; labels tell", "version", "pythonversion"),
        ),
    ),
)

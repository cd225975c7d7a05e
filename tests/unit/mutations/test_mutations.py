"""Every mapping from an event to its keys, and every update of an index, is held by a named test.

Each mutant is a copy of the package with one of them taken out; the tests named beside it have to
fail there. A row whose text is not found exactly once is a failure: it follows what it is about.
"""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path

import pytest
from msgspec import Struct

_ROOT = Path(__file__).parents[3]
_DEADLINE_S = 100.0
_AT_ONCE = 2

# Tests by the names that the table uses.
_FILES = {
    "keys": "tests/unit/proxy/test_dirty_keys.py",
    "nodes": "tests/unit/proxy/test_proxy_nodes.py",
    "proxy": "tests/unit/proxy/test_proxy_controller.py",
    "sets": "tests/unit/proxy/test_service_sets.py",
    "desired": "tests/unit/proxy/test_desired.py",
    "drain": "tests/unit/proxy/test_drain.py",
    "wiring": "tests/unit/agent/test_wiring.py",
    "cache": "tests/unit/cluster/test_cache.py",
    "followers": "tests/unit/observe/test_followers.py",
    "health": "tests/unit/observe/test_service_health.py",
    "firewall": "tests/unit/firewall/test_firewall_controller.py",
    "trace": "tests/unit/firewall/test_render_trace.py",
    "steps": "tests/unit/firewall/test_transitions.py",
    "audit": "tests/unit/firewall/test_audit.py",
    "names": "tests/unit/firewall/test_claims.py",
    "reused": "tests/unit/firewall/test_reused_addresses.py",
    "addresses": "tests/unit/loadbalancer/test_allocate.py",
    "pools": "tests/unit/proxy/test_live_pools.py",
    "fw_pools": "tests/unit/firewall/test_live_pools.py",
    "retired": "tests/unit/proxy/test_retired_pools.py",
    "bgp_pools": "tests/unit/routing/test_pools.py",
}


class Mutant(Struct, frozen=True):
    """``old`` in ``module`` becomes ``new``; ``tests`` (``file name``) have to fail."""

    module: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.module}: {self.old.strip()[:60]}"


_KEYS = "proxy/dirty_keys.py"
_DESIRED = "proxy/desired.py"
_SETS = "proxy/service_sets.py"
_HOST = "proxy/host.py"
_PROXY = "proxy/controller.py"
_DRAIN = "proxy/drain.py"
_CACHE = "cluster/cache.py"
_INDEXES = "cluster/indexes.py"
_FW = "firewall/controller.py"
_FW_DESIRED = "firewall/desired.py"
_FW_APPLY = "firewall/apply.py"
_HOLDING = "firewall/holding.py"
_FRAME = "firewall/frame.py"
_OWNERS = "firewall/owners.py"
_REUSED = "firewall/reused.py"
_WAYS = "firewall/dispatch.py"
_MEMBERS = "firewall/membership.py"
_CONTENTS = "firewall/contents.py"
_TIES = "firewall/entangled.py"
_ALLOCATE = "loadbalancer/allocate.py"
_PLAN = "loadbalancer/allocation_plan.py"
_HOLDERS = "loadbalancer/holders.py"
_FREE = "loadbalancer/free_addresses.py"

_FOLLOWS = ("firewall test_what_stands_follows_every_object",)
_FULL = ("firewall test_a_full_turn_finds_what_no_event_told",)
_REFUSED_BY_BOTH = ("steps test_nothing_passes_that_both_states_refuse",)


_VERDICTS = ("trace test_semantics",)


def _case(name: str, *, restart: bool = False) -> tuple[str, ...]:
    """One of the parameters of that test."""
    case = f"{name.replace(' ', '-')}-{'restart' if restart else ''}"
    return (f"steps test_nothing_passes_that_both_states_refuse[{case}]",)


MUTANTS = (
    # --- events to keys ------------------------------------------------------------------------
    Mutant(
        _KEYS,
        "return frozenset((event.key,))",
        "return frozenset()",
        ("proxy test_deleting_a_service_removes_what_it_had",),
    ),
    Mutant(
        _KEYS,
        "for each in (event.old, event.new) if each)",
        "for each in (event.new,) if each)",
        ("keys test_a_slice_that_changes_its_service_concerns_both",),
    ),
    Mutant(
        _KEYS,
        "for each in (event.old, event.new) if each)",
        "for each in (event.old,) if each)",
        ("keys test_a_slice_that_changes_its_service_concerns_both",),
    ),
    Mutant(
        _KEYS,
        "keys.add(CLUSTER_NODES)",
        "pass",
        ("keys test_events_of_nodes", "sets test_a_node_that_joins_is_no_outsider"),
    ),
    Mutant(
        _KEYS,
        "keys.add(OWN_NODE)",
        "pass",
        ("keys test_events_of_nodes", "proxy test_a_changed_node_moves_node_ports_sources_and_nat"),
    ),
    Mutant(
        _KEYS,
        "_own_facts if event.key == node_name else _weight",
        "_weight",
        ("keys test_events_of_nodes", "nodes test_the_nodes_zone_is_followed"),
    ),
    Mutant(
        _KEYS,
        "_own_facts if event.key == node_name else _weight",
        "_own_facts",
        ("nodes test_nodes_that_come_and_go_are_work_only_for_their_weight",),
    ),
    Mutant(
        _KEYS,
        "problems, _weight(node)",
        "problems, None",
        ("nodes test_a_weight_of_any_node_is_followed[node1]",),
    ),
    Mutant(
        _KEYS,
        "return view and (view.addresses, view.pod_cidrs)",
        "return view and (view.addresses,)",
        ("keys test_events_of_nodes",),
    ),
    Mutant(
        _KEYS,
        "return view and (view.addresses, view.pod_cidrs)",
        "return view and (view.pod_cidrs,)",
        ("keys test_events_of_nodes",),
    ),
    Mutant(
        _KEYS,
        "yield LOCAL_PODS",
        "pass",
        ("sets test_the_pods_of_another_pod_network_are_followed",),
    ),
    Mutant(
        _KEYS,
        "yield LEAVING_PODS",
        "pass",
        ("keys test_draining_lasts_until_the_pod_is_killed",),
    ),
    Mutant(
        _KEYS,
        "for kind in (*KINDS, Pod) if",
        "for kind in KINDS if",
        (
            "keys test_draining_lasts_until_the_pod_is_killed",
            "sets test_the_pods_of_another_pod_network_are_followed",
        ),
    ),
    Mutant(
        _KEYS,
        "loop.mark(keys)",
        "pass",
        ("nodes test_the_nodes_zone_is_followed",),
    ),
    # --- what the keys do in a turn ------------------------------------------------------------
    Mutant(
        _HOST,
        "own or CLUSTER_NODES in dirty or",
        "own or",
        ("sets test_a_node_that_joins_is_no_outsider",),
    ),
    Mutant(
        _HOST,
        "or (knows_pods and LOCAL_PODS in dirty)",
        "",
        ("sets test_the_pods_of_another_pod_network_are_followed",),
    ),
    Mutant(
        _HOST,
        "if not full and OWN_NODE not in dirty:",
        "if not full:",
        ("nodes test_the_nodes_zone_is_followed",),
    ),
    Mutant(
        _PROXY,
        "servers |= self._draining.servers()",
        "pass",
        ("keys test_a_pod_that_is_killed_sooner_is_not_waited_for",),
    ),
    Mutant(
        _PROXY,
        "everything = full or has_moved",
        "everything = full",
        ("nodes test_the_nodes_zone_is_followed",),
    ),
    Mutant(
        _PROXY,
        "(vips | self._applied.withheld)",
        "vips",
        ("proxy test_an_address_is_put_once_one_of_its_virtual_servers_stands",),
    ),
    Mutant(
        _PROXY,
        "if (full or POOLS in dirty) and",
        "if full and",
        ("pools test_services_follow_the_pools",),
    ),
    Mutant(
        _PROXY,
        "if (full or POOLS in dirty) and",
        "if POOLS in dirty and",
        ("pools test_a_full_turn_takes_the_pools_as_they_are",),
    ),
    Mutant(
        _FW,
        "if full or POOLS in dirty:",
        "if full:",
        ("fw_pools test_addresses_follow_the_pools",),
    ),
    Mutant(
        _FW,
        "if full or POOLS in dirty:",
        "if POOLS in dirty:",
        ("fw_pools test_addresses_follow_the_pools",),
    ),
    Mutant(
        "address_pools.py",
        "(*pools.networks(), *pools.retired_networks())",
        "pools.networks()",
        ("retired test_a_pool_shrinks_and_goes_and_its_services_stay",),
    ),
    Mutant(
        "pool_book.py",
        "before.pools.pools, before.pools.retired)",
        "before.pools.pools)",
        ("retired test_a_pool_shrinks_and_goes_and_its_services_stay",),
    ),
    Mutant(
        "pool_book.py",
        "before.pools.retired, accepted, kept)",
        "before.pools.retired, accepted)",
        ("retired test_an_agent_that_starts_later_goes_on_until_the_address_is_given_up",),
    ),
    Mutant(
        "pool_book.py",
        "before.pools.retired, accepted, kept)",
        "before.pools.retired, kept)",
        ("retired test_an_edit_that_no_agent_saw_changes_nothing_either",),
    ),
    Mutant(
        "kept_addresses.py",
        "for each in pools.pools if each.name == DEFAULT_POOL",
        "for each in ()",
        ("retired test_a_flag_that_shrinks_over_a_restart_changes_nothing_either",),
    ),
    Mutant(
        "routing/pool_terms.py",
        "(*pools.pools, *pools.retired)",
        "pools.pools",
        ("bgp_pools test_what_was_taken_out_of_pools_is_announced_as_before",),
    ),
    # --- the cache and its indexes -------------------------------------------------------------
    Mutant(
        _CACHE,
        "index.update(key, old, new)",
        "pass",
        (
            "cache test_slices_by_service_sorted_by_name",
            "cache test_services_by_every_kind_of_vip_in_any_spelling",
            "cache test_pods_by_ip_node_and_namespace",
        ),
    ),
    Mutant(
        _CACHE,
        "self._stores[kind].indexes.append(index)",
        "pass",
        ("cache test_slices_by_service_sorted_by_name",),
    ),
    Mutant(
        _CACHE,
        "notify(event)\n",
        "pass\n",
        ("cache test_put_change_delete_are_told_with_old_and_new",),
    ),
    Mutant(
        _CACHE,
        "for key in gone:\n                    self._write(store, kind, key, None)",
        "pass",
        (
            "cache test_replace_tells_exactly_the_difference",
            "cache test_pods_by_ip_node_and_namespace",
        ),
    ),
    Mutant(
        _INDEXES,
        "self._discard(term, key)",
        "pass",
        (
            "cache test_slices_by_service_sorted_by_name",
            "cache test_pods_by_ip_node_and_namespace",
        ),
    ),
    Mutant(
        _INDEXES,
        "self._add(term, key)",
        "pass",
        ("cache test_slices_by_service_sorted_by_name",),
    ),
    Mutant(
        _INDEXES,
        "bucket.discard(key)",
        "pass",
        ("cache test_services_by_every_kind_of_vip_in_any_spelling",),
    ),
    Mutant(
        _INDEXES,
        "self._buckets[term] = {bucket, key}",
        "pass",
        ("cache test_services_by_every_kind_of_vip_in_any_spelling",),
    ),
    Mutant(
        _INDEXES,
        "*(spec.cluster_ips or ()), *(spec.external_ips or ())]",
        "*(spec.cluster_ips or ())]",
        ("cache test_services_by_every_kind_of_vip_in_any_spelling",),
    ),
    Mutant(
        _INDEXES,
        "*(entry.ip for entry in pod.status.pod_ips or ())]",
        "]",
        ("cache test_pods_by_ip_node_and_namespace",),
    ),
    # --- the indexes of the desired state ------------------------------------------------------
    Mutant(
        _DESIRED,
        "self._claim(server, key, claims=server in after)",
        "pass",
        ("desired test_the_older_service_holds_a_contested_virtual_server",),
    ),
    Mutant(
        _DESIRED,
        "if reordered or (server in before) != (server in after):",
        "if (server in before) != (server in after):",
        ("desired test_a_recreated_service_loses_its_seniority",),
    ),
    Mutant(
        _DESIRED,
        "_change(self._vips, vip, key, claims=vip in new_vips)",
        "pass",
        ("desired test_the_next_one_takes_over_and_the_address_stays_meanwhile",),
    ),
    Mutant(
        _DESIRED,
        "            self._services.pop(key, None)",
        "            pass",
        ("desired test_what_asks_for_nothing_is_forgotten",),
    ),
    Mutant(
        _DESIRED,
        "self._with_problems.add(key)",
        "pass",
        ("desired test_problems_come_and_go_with_their_service",),
    ),
    Mutant(
        _DESIRED,
        "self._with_problems.discard(key)",
        "pass",
        ("desired test_problems_come_and_go_with_their_service",),
    ),
    Mutant(
        _DESIRED,
        "self._owner.pop(server, None)",
        "pass",
        ("desired test_the_next_one_takes_over_and_the_address_stays_meanwhile",),
    ),
    Mutant(
        _DESIRED,
        "self._contested[server] = tuple(ranked)",
        "pass",
        ("desired test_the_older_service_holds_a_contested_virtual_server",),
    ),
    Mutant(
        _DESIRED,
        "self._contested.pop(server, None)",
        "pass",
        ("desired test_the_next_one_takes_over_and_the_address_stays_meanwhile",),
    ),
    Mutant(
        _DESIRED,
        "or before.get(server) != after.get(server)",
        "",
        ("desired test_an_update_touches_only_what_changed",),
    ),
    Mutant(
        _DESIRED,
        "or _paused(old, server) != _paused(compiled, server)",
        "",
        ("desired test_a_pause_is_a_change",),
    ),
    Mutant(
        _DESIRED,
        "or _guard(old, server) != _guard(compiled, server)",
        "",
        ("desired test_a_guard_is_a_change_even_if_no_endpoint_is",),
    ),
    Mutant(
        _DESIRED,
        "if _hairpins(old) != _hairpins(compiled) or _refused",
        "if _refused",
        ("desired test_hairpins_that_change_name_the_service",),
    ),
    Mutant(
        _DESIRED,
        "_change(self._health_ports, port, key, claims=claims)",
        "self._health_ports.get(port, frozenset())",
        ("desired test_one_service_answers_on_a_health_check_port",),
    ),
    Mutant(
        _DESIRED,
        "self._contested_health_ports.add(port)",
        "pass",
        ("desired test_one_service_answers_on_a_health_check_port",),
    ),
    Mutant(
        _DESIRED,
        "self._contested_health_ports.discard(port)",
        "pass",
        ("desired test_one_service_answers_on_a_health_check_port",),
    ),
    Mutant(
        _DESIRED,
        "touched |= claimants",
        "pass",
        ("desired test_one_service_answers_on_a_health_check_port",),
    ),
    # --- sets ----------------------------------------------------------------------------------
    Mutant(
        _SETS,
        "self._follow_guards(found, desired, changes.servers)",
        "pass",
        ("sets test_outsiders_are_kept_out_where_no_endpoint_is_local",),
    ),
    Mutant(
        _SETS,
        "self._follow_hairpins(found, desired, changes.services)",
        "pass",
        ("sets test_two_services_share_a_hairpin_entry",),
    ),
    Mutant(
        _SETS,
        "_follow_plan(found, planned, vips)",
        "pass",
        ("sets test_a_service_comes_and_goes_in_the_order_of_safety",),
    ),
    Mutant(
        _SETS,
        "self._users[each] -= 1",
        "pass",
        ("sets test_two_services_share_a_hairpin_entry",),
    ),
    Mutant(
        _SETS,
        "if not self._users[each]:",
        "if True:",
        ("sets test_two_services_share_a_hairpin_entry",),
    ),
    Mutant(
        _SETS,
        "self._guards[key] = new",
        "pass",
        ("sets test_outsiders_are_kept_out_where_no_endpoint_is_local",),
    ),
    # --- draining ------------------------------------------------------------------------------
    Mutant(
        _DRAIN,
        "self._clocks[key] = clocks",
        "pass",
        ("drain test_a_vanished_endpoint_goes_to_weight_0_and_then_away",),
    ),
    Mutant(
        _DRAIN,
        "known = self._clocks.pop(key, {})",
        "known = self._clocks.get(key, {})",
        ("drain test_the_endpoints_return_cancels_it",),
    ),
    Mutant(
        _DRAIN,
        "clocks[real] = _ENDED",
        "pass",
        ("drain test_a_vanished_endpoint_goes_to_weight_0_and_then_away",),
    ),
    Mutant(
        _DRAIN,
        "if known and known.by_pod:",
        "if False:",
        ("drain test_a_clock_that_is_ahead_puts_no_deadline_off",),
    ),
    # --- what is no event of the cluster, and what other nodes say -----------------------------
    Mutant(
        "proxy_part.py",
        "self.loop.mark((OTHER_NODES,))",
        "None",
        ("wiring test_word_of_other_nodes_is_for_the_proxy",),
    ),
    Mutant(
        "proxy_part.py",
        "AddressMonitor(lambda: self.loop.mark((OWN_NODE,))",
        "AddressMonitor(lambda: None",
        ("wiring test_a_change_of_addresses_is_for_the_proxy",),
    ),
    Mutant(
        "proxy_part.py",
        "self._proxy.subscribe(cache, self.loop)",
        "pass",
        ("wiring test_events_of_the_cluster_are_for_the_proxy",),
    ),
    Mutant(
        "proxy/dsr_host.py",
        "dirty = (dirty - {OTHER_NODES}) | self._services.keys()",
        "pass",
        ("wiring test_word_of_other_nodes_concerns_services_of_direct_return",),
    ),
    # --- those who follow ----------------------------------------------------------------------
    Mutant(
        "observe/programming.py",
        "self._arrived.append(seconds)",
        "pass",
        ("followers test_programming_is_counted_from_the_change_of_the_endpoints",),
    ),
    Mutant(
        "observe/events.py",
        "self._refused[key] = refused",
        "pass",
        ("followers test_every_refused_address_gives_one_event",),
    ),
    Mutant(
        "observe/health_checks.py",
        "or changes.services or self._problems",
        "",
        ("health test_checks_follow_what_is_programmed",),
    ),
    # --- the firewall: events to keys, keys to facts ---------------------------------------------
    Mutant(
        _FW,
        "loop.mark((Key(event.kind.__name__, event.key),))",
        "pass",
        ("firewall test_events_mark_objects_but_not_other_nodes",),
    ),
    Mutant(
        _FW,
        "if event.kind is not Node or event.key == self._node_name:",
        "if True:",
        ("firewall test_events_mark_objects_but_not_other_nodes",),
    ),
    Mutant(
        _FW,
        "if event.kind is not Node or event.key == self._node_name:",
        "if event.kind is not Node:",
        ("firewall test_events_mark_objects_but_not_other_nodes",),
    ),
    Mutant(
        _FW,
        "self._desired.put_policy(name, compile_policy(found) if found else None)",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "self._desired.put_pod(name, facts)",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "self._reused.owners.put(name, uid, self._own_addresses(facts))",
        "pass",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _FW,
        "if facts is not None and facts.is_local:",
        "if facts is not None:",
        ("reused test_pods_elsewhere_and_of_the_host_network_have_none_here",),
    ),
    Mutant(
        _OWNERS,
        "self._addresses[key] = owner, claimed",
        "pass",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _OWNERS,
        "self._touch(address).discard(former)",
        "self._touch(address)",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _OWNERS,
        "self._touch(address).add(owner)",
        "self._touch(address)",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _OWNERS,
        "self._before.clear()",
        "pass",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _REUSED,
        "self._pending -= done",
        "pass",
        ("reused test_connections_of_an_address_that_changes_hands_go",),
    ),
    Mutant(
        _REUSED,
        "self._passing |= done",
        "pass",
        ("reused test_while_rules_cannot_be_written_it_is_done_at_once_and_again_at_last",),
    ),
    Mutant(
        _REUSED,
        "due = self._pending if stands else self._pending - self._passing",
        "due = self._pending - self._passing",
        ("reused test_while_rules_cannot_be_written_it_is_done_at_once_and_again_at_last",),
    ),
    Mutant(
        _FW,
        "self._desired.put_namespace(name, compile_namespace(found) if found else None)",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "self._desired.put_service(name, {}, {})",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "self._desired.put_service(name, ports, node_ports(found, self._options))",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "self._desired.put_node(node_facts(node_view(found)[0]))",
        "pass",
        ("firewall test_each_kind_of_object_is_followed",),
    ),
    Mutant(
        _FW,
        "found = {self._own_node(), *self._known}",
        "found = {self._own_node()}",
        _FULL,
    ),
    Mutant(
        _FW,
        "found = {self._own_node(), *self._known}",
        "found = {*self._known}",
        _FULL,
    ),
    Mutant(
        _FW,
        "self._cache.list(NetworkPolicy)",
        "()",
        ("firewall test_another_agent_adopts_all_and_writes_nothing",),
    ),
    Mutant(
        _FW,
        "for x in self._cache.list(Pod)",
        "for x in ()",
        ("firewall test_another_agent_adopts_all_and_writes_nothing",),
    ),
    Mutant(
        _FW,
        "self._cache.list(Namespace)",
        "()",
        _case("both ends are in a namespace that gets other labels", restart=True),
    ),
    Mutant(
        _FW,
        "x in self._cache.list(Service)",
        "x in ()",
        _FULL,
    ),
    Mutant(
        _FW,
        "self._applier.doubt()",
        "pass",
        ("firewall test_a_kernel_that_cannot_be_asked_is_asked_again",),
    ),
    Mutant(
        _FW,
        "failed: set[Hashable] = {*self._broken}",
        "failed: set[Hashable] = set()",
        ("firewall test_an_object_that_cannot_be_compiled_is_as_it_was_and_tried_again",),
    ),
    # --- the firewall: who is selected -----------------------------------------------------------
    Mutant(
        _MEMBERS,
        "self._users[selection] = users + 1",
        "self._users[selection] = 1",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._anchored.setdefault(anchor, set()).add(selection)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._by_namespaces.setdefault(chosen, set()).add(selection)",
        "self._by_namespaces.setdefault(chosen, set())",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "del space[key]",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._pods_of.setdefault(new.namespace, {})[key] = new",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._move(selection, key, old, None)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._move(selection, key, old if selection in before else None, new)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "(spaces.add if is_in else spaces.discard)(name)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._labels.pop(name, None)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._labels[name] = labels",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._move(selection, key, None if is_in else pod, pod if is_in else None)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "del self._members[selection][key]",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "self._members[selection][key] = new",
        "self._members[selection].setdefault(key, new)",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        "yield from self._anchored.get((space, label, None), ())",
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _MEMBERS,
        "yield from self._anchored.get((space, label, value), ())",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _MEMBERS,
        'yield from self._anchored.get((space, "", None), ())',
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _MEMBERS,
        'for space in (pod.namespace, ""):',
        "for space in (pod.namespace,):",
        _FOLLOWS,
    ),
    # --- the firewall: entries are counted -------------------------------------------------------
    Mutant(
        _CONTENTS,
        "counts[entry] = count + 1",
        "counts[entry] = 1",
        _FOLLOWS,
    ),
    Mutant(
        _CONTENTS,
        "before.setdefault(entry, False)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _CONTENTS,
        "before.setdefault(entry, True)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _CONTENTS,
        "self._created.add(spec)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _CONTENTS,
        "self._dropped.add(spec)",
        "pass",
        _FOLLOWS,
    ),
    # --- the firewall: what follows from what changed --------------------------------------------
    Mutant(
        _HOLDING,
        "if self._pods.pop(key, None) is None:",
        "if True:",
        _FOLLOWS,
    ),
    Mutant(
        _HOLDING,
        "self._dirty.add(key)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _HOLDING,
        "self._dirty.update(self._targets.members(old.target))",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _HOLDING,
        "self._targets.remove(old.target)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _HOLDING,
        "users.discard(key)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _HOLDING,
        "self._dirty.update(self._targets.members(policy.target))",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._dirty_policies.add(key)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._queued[key] = pod",
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._follow_moves()  # of namespaces, before selections come and go",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "needed |= self._put_local_pod(key, is_forced",
        "self._put_local_pod(key, is_forced",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "change(local_pods(family), addresses)",
        "pass",
        ("steps test_with_default_deny_a_new_pod_is_refused_until_all_stands",),
    ),
    Mutant(
        _FW_DESIRED,
        "change(held(direction, family), addresses)",
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _FW_DESIRED,
        "held = audited_pods if hold.is_audited else isolated_pods",
        "held = isolated_pods",
        ("audit test_nothing_is_refused_to_an_audited_pod_by_other_rules",),
    ),
    Mutant(
        _FW_DESIRED,
        "if hold.is_audited and target != chain:",
        "if False:",
        ("audit test_an_audited_pod_without_its_chain_stays_open",),
    ),
    Mutant(
        _FW_DESIRED,
        "pod_rules(*named, is_audited=hold.is_audited)",
        "pod_rules(*named)",
        ("audit test_who_is_admitted_and_of_whom_it_is_told",),
    ),
    Mutant(
        _HOLDING,
        "for target in self._left_to.get(name, ()):",
        "for target in ():",
        ("audit test_an_annotation_is_followed_both_ways",),
    ),
    Mutant(
        _HOLDING,
        "self._leave(old, old.target, -1)",
        "pass",
        ("audit test_a_namespace_forgets_policies_that_are_gone",),
    ),
    Mutant(
        _HOLDING,
        "self._leave(policy, policy.target, 1)",
        "pass",
        ("audit test_an_annotation_is_followed_both_ways",),
    ),
    Mutant(
        _HOLDING,
        "if not self.is_audited(key):",
        "if True:",
        ("audit test_who_is_admitted_and_of_whom_it_is_told",),
    ),
    Mutant(
        _HOLDING,
        "enforced |= directions",
        "enforced |= {*Direction}",
        ("audit test_each_direction_is_audited_by_itself",),
    ),
    Mutant(
        _FRAME,
        'f"{_among(audited, direction)} {once} {enters}"',
        'f"{_among(audited, direction)} {enters}"',
        ("audit test_an_audited_pod_opens_nothing_for_another_of_its_address",),
    ),
    Mutant(
        _FW_DESIRED,
        "(users.add if is_new else users.discard)(key)",
        "users.add(key)",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._dispatch(facts, isolated, is_new=is_new)",
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._put_pod_chains(key, old, new)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _WAYS,
        "self._dirty.add(place)",
        "pass",
        _VERDICTS,
    ),
    Mutant(
        _WAYS,
        "            yield family, name, None\n        for name, rules in new.items()",
        "            pass\n        for name, rules in new.items()",
        _FOLLOWS,
    ),
    Mutant(
        _WAYS,
        "yield self._top(direction, family)\n\n    def _top",
        "pass\n\n    def _top",
        _VERDICTS,
    ),
    Mutant(
        _FW_DESIRED,
        "released += ((source, place) for source in self._put_policy_chain(*place))",
        "_ = [self._release(source, place) for source in self._put_policy_chain(*place)]",
        ("steps test_what_the_order_of_steps_is_enough_for_takes_one_commit_or_none",),
    ),
    Mutant(
        _FW_DESIRED,
        "self._release(source, place)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "users.add(place)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self.sets.discard(spec, before - after)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self.sets.add(spec, after - before)",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self._of_selection.setdefault(source.selection, set()).add(source)",
        "self._of_selection.setdefault(source.selection, set())",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self.sets.add(source.spec, source.entries(move.new))",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        "self.sets.discard(source.spec, source.entries(move.old))",
        "pass",
        _FOLLOWS,
    ),
    Mutant(
        _FW_DESIRED,
        'else "DROP"',
        "else chain",
        ("names test_a_second_pod_of_one_chain_is_refused_until_the_first_goes",),
    ),
    Mutant(
        _FW_DESIRED,
        "taken.isdisjoint(each.split())",
        "True",
        ("names test_a_second_selection_of_one_set_matches_nobody_until_the_first_goes",),
    ),
    Mutant(
        _FW_DESIRED,
        "elif not self._names.policies.holds(name, place):",
        "elif False:",
        ("names test_a_second_policy_of_one_chain_admits_nobody_until_the_first_goes",),
    ),
    Mutant(
        _FW_DESIRED,
        "sorted(self._holding.take_dirty() | freed)",
        "sorted(self._holding.take_dirty())",
        ("names test_a_second_pod_of_one_chain_is_refused_until_the_first_goes",),
    ),
    # --- the firewall: the order of the steps ----------------------------------------------------
    Mutant(
        _FW_DESIRED,
        "changes.entangled = self._entanglement.take(changed, self._set_users, self.sets)",
        "pass",
        _REFUSED_BY_BOTH,
    ),
    Mutant(
        _FW_DESIRED,
        "self._entanglement.note_pod(old, new)",
        "pass",
        _case("a pod that may send nothing comes where it would be let in"),
    ),
    Mutant(
        _FW_DESIRED,
        "self._entanglement.note_rules(family)",
        "pass",
        _case("a policy is another, and so is a peer"),
    ),
    Mutant(
        _TIES,
        "if self.recast[direction] & self.peers[other]:",
        "if False:",
        _case("a pod that may send nothing comes where it would be let in"),
    ),
    Mutant(
        _TIES,
        "if stays and self.peers[direction] and len(stays | self.peers[direction]) > 1:",
        "if False:",
        _case("one end gets other policies, the other end is another peer"),
    ),
    Mutant(
        _TIES,
        "return bool(all(ends) and len(ends[0] | ends[1]) > 1)",
        "return False",
        _case("both ends are in a namespace that gets other labels"),
    ),
    Mutant(
        _TIES,
        "or self._are_targets_entangled()",
        "",
        _case("the port that a rule names is another, and so is the peer"),
    ),
    Mutant(
        _FW_APPLY,
        "families = () if was_known else self._options.families",
        "families = ()",
        _case("both ends are in a namespace that gets other labels", restart=True),
    ),
    Mutant(
        _FW_APPLY,
        "families = () if was_known else self._options.families",
        "families = self._options.families",
        ("firewall test_drift_is_put_right_and_counted_on_a_full_turn",),
    ),
    Mutant(
        _FW_APPLY,
        "chains = {**chains, **self._looking_into(overlay, family)}",
        "pass",
        _REFUSED_BY_BOTH,
    ),
    Mutant(
        _FW_APPLY,
        "self._lift(ports, overlay, held)\n        dropped",
        "dropped",
        _REFUSED_BY_BOTH,
    ),
    Mutant(
        _FW_APPLY,
        "for batch in self._in_order(going, growing):",
        "for batch in ():",
        _FOLLOWS,
    ),
    Mutant(
        _FW_APPLY,
        "for batch in self._in_order(going, growing):",
        "for batch in self._in_order(growing, going):",
        ("steps test_with_default_deny_what_a_pod_leaves_is_closed_first",),
    ),
    Mutant(
        _FW_APPLY,
        "for batch in self._in_order(shrinking, coming):",
        "for batch in self._in_order(coming, shrinking):",
        ("steps test_with_default_deny_what_a_pod_takes_is_opened_last",),
    ),
    Mutant(
        _FW_APPLY,
        "            if _is_last(spec):\n                if delta.remove:",
        "            if False:\n                if delta.remove:",
        _FOLLOWS,
    ),
    Mutant(
        _FW_APPLY,
        " or spec in staying:",
        ":",
        ("audit test_a_pod_is_refused_though_it_is_not_told_among_the_isolated",),
    ),
    Mutant(
        _FW_APPLY,
        "and add and spec.family not in self._unguarded:",
        "and add:",
        ("firewall test_with_default_deny_a_pod_is_not_let_through_while_its_isolation_fails",),
    ),
    Mutant(
        _ALLOCATE,
        "            self._adopt(self._wanted[key][0])\n",
        "            self._held[key] = {}\n",
        ("addresses test_of_two_with_one_address_the_older_keeps_it",),
    ),
    Mutant(
        _ALLOCATE,
        "            self._list(key, self._unheld(key), set())",
        "            pass",
        ("addresses test_the_same_holds_from_the_first_moment_of_a_leader",),
    ),
    Mutant(
        _ALLOCATE,
        "        self._list(key, (*self._holders.listed(key), address), places)",
        "        self._settle(address, places)",
        ("addresses test_what_may_be_on_its_way_into_a_status_is_given_to_nobody",),
    ),
    Mutant(
        _ALLOCATE,
        "            self._list(key, (), places)  # the last write has come through",
        "            pass",
        ("addresses test_what_a_status_may_still_list_is_given_to_nobody",),
    ),
    Mutant(
        _ALLOCATE,
        "            freed = self.remove(key)  # another one, of the same name",
        "            pass",
        ("addresses test_another_service_of_the_same_name_inherits_nothing",),
    ),
    Mutant(
        _ALLOCATE,
        "        places.add(address)\n",
        "",
        ("addresses test_an_address_that_is_asked_for_is_waited_for",),
    ),
    Mutant(
        _ALLOCATE,
        "            places.add((pool.name, address.version))",
        "            pass",
        ("addresses test_the_lowest_free_address_is_given_and_given_again",),
    ),
    Mutant(
        _ALLOCATE,
        "            is_contested = is_new and ",
        "            is_contested = False and ",
        ("addresses test_an_address_that_no_status_lists_yet_gives_way_to_an_external_ip",),
    ),
    Mutant(
        _ALLOCATE,
        "        places |= self._wait(key, frozenset(plan.waits))",
        "        self._wait(key, frozenset(plan.waits))",
        ("addresses test_no_more_are_tried_again_than_there_is_room_for",),
    ),
    Mutant(
        _ALLOCATE,
        "request.share or self._holders.listed(key))",
        "request.share)",
        ("addresses test_a_loser_without_another_address_is_to_list_none",),
    ),
    Mutant(
        _PLAN,
        "            self._all_or_nothing()",
        "            pass",
        ("addresses test_who_requires_both_gets_both_or_none",),
    ),
    Mutant(
        _PLAN,
        "                self._plan.waits.add(asked)",
        "                pass",
        ("addresses test_an_address_that_is_asked_for_is_waited_for",),
    ),
    Mutant(
        _PLAN,
        "shared[_SHARED_TRIES:]",
        "()",
        ("addresses test_when_no_address_is_free_every_shared_one_is_tried",),
    ),
    Mutant(
        _HOLDERS,
        "        if others := self._foreign.others(address, key):",
        "        if others := []:",
        ("addresses test_a_refusal_names_its_reason_and_harms_nobody",),
    ),
    Mutant(
        _HOLDERS,
        "        for port in terms.ports:\n            del self._by_port[port]\n",
        "",
        ("addresses test_services_with_one_key_share_an_address",),
    ),
    Mutant(
        _FREE,
        "            heappush(self._released, number)",
        "            pass",
        ("addresses test_the_lowest_free_address_is_given_and_given_again",),
    ),
)

# Runs tests on one copy of the package after the other, each in a process of its own. What no
# mutant changes is imported once. A line in: [place of the copy, file for the output, arguments
# of pytest...]; a line out: the exit code.
_RUNNER = """
import json, os, sys, traceback
import hypothesis, hypothesis.strategies, msgspec, pytest, tenacity
for line in sys.stdin:
    place, output, *given = json.loads(line)
    child = os.fork()
    if not child:
        code = 99
        try:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(1, 2)
            sys.path.insert(0, place)
            import kube_router_py
            assert kube_router_py.__file__.startswith(place), kube_router_py.__file__
            code = int(pytest.main(given))
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Runner:
    """One process that runs tests; for one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUNNER],
            cwd=_ROOT,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, place: Path, tests: tuple[str, ...]) -> tuple[int, str]:
        """Run tests against the package in ``place``; returns the exit code and the output."""
        process, output = self._process, place / "output"
        assert process.stdin is not None
        assert process.stdout is not None
        plain = ("-q", "-rA", "--tb=line", "-p", "no:cacheprovider", f"--rootdir={_ROOT}")
        # The runner has imported what pytest's plugins would have rewritten.
        quiet = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
        job = [str(place), str(output), *plain, *quiet, *map(_node_id, tests)]
        process.stdin.write(f"{json.dumps(job)}\n")
        process.stdin.flush()
        code = process.stdout.readline().strip()
        return (int(code) if code else -1), output.read_text() if output.exists() else ""

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=_DEADLINE_S)


def _node_id(test: str) -> str:
    file, _, name = test.partition(" ")
    return f"{_FILES[file]}::{name}"


def _copy(place: Path) -> Path:
    source = _ROOT / "kube_router_py"
    # Compiled modules come along: they are valid as long as the source keeps its time.
    shutil.copytree(source, place / "kube_router_py", ignore=shutil.ignore_patterns("lab"))
    return place


def _try(mutant: Mutant, place: Path, runners: queue.SimpleQueue[Runner]) -> str:
    """Take one thing out; returns what is wrong with the row, or with its tests."""
    path = _copy(place) / "kube_router_py" / mutant.module
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return f"found {text.count(mutant.old)} times in {mutant.module}: {mutant.old!r}"
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, str(path), "exec")
    path.write_text(changed)
    # It may be as long as before, and written within the same second.
    Path(cache_from_source(str(path))).unlink(missing_ok=True)
    runner = runners.get()
    try:
        _, output = runner.run(place, mutant.tests)
    finally:
        runners.put(runner)
    shutil.rmtree(place)
    failed = {line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")}
    for test in mutant.tests:
        # One of several parameters is enough, where none is named.
        wanted = _node_id(test)
        if not any(each == wanted or each.startswith(f"{wanted}[") for each in failed):
            return f"{wanted} does not fail:\n{output}"
    return ""


@pytest.fixture(scope="module")
def runners() -> Iterator[queue.SimpleQueue[Runner]]:
    """As many as there are to be at work at the same time."""
    found = [Runner() for _ in range(_AT_ONCE)]
    idle: queue.SimpleQueue[Runner] = queue.SimpleQueue()
    for each in found:
        idle.put(each)
    yield idle
    for each in found:
        each.close()


@pytest.fixture(scope="module")
def outcomes(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    runners: queue.SimpleQueue[Runner],
) -> Iterator[dict[Mutant, Future[str]]]:
    """What becomes of those that were asked for."""
    place = tmp_path_factory.mktemp("mutants")
    params = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
    ]
    found = [each.get("mutant") for each in params]
    wanted = [each for each in found if isinstance(each, Mutant)]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield {
            mutant: pool.submit(_try, mutant, place / str(number), runners)
            for number, mutant in enumerate(wanted)
        }
        pool.shutdown(cancel_futures=True)


def test_without_a_mutation_all_of_these_tests_pass(
    tmp_path: Path, runners: queue.SimpleQueue[Runner]
) -> None:
    tests = tuple(sorted({test for mutant in MUTANTS for test in mutant.tests}))
    runner = runners.get()
    code, output = runner.run(_copy(tmp_path), tests)
    runners.put(runner)
    assert code == 0, output


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_what_is_taken_out_is_missed(mutant: Mutant, outcomes: dict[Mutant, Future[str]]) -> None:
    wrong = outcomes[mutant].result(_DEADLINE_S)
    assert not wrong, wrong

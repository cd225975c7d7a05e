"""The catalogue of findings, and the page that explains it."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from kube_router_py.doctor.agent_state import absent, differing, state
from kube_router_py.doctor.findings import (
    CODES,
    ERROR,
    NOTE,
    PREFLIGHT_ERRORS,
    SEVERITIES,
    WARNING,
    before_start,
    by_weight,
    found,
    is_bad,
)
from kube_router_py.doctor.permissions import PERMISSIONS, needed
from kube_router_py.options import Options, parse

REPOSITORY = Path(__file__).parents[3]
PACKAGE = REPOSITORY / "kube_router_py" / "doctor"
PAGE = REPOSITORY / "docs" / "doctor.md"


def documented():
    """Code: severity, in the tables of the page."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (\w+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.M)
    assert all(meaning.strip() and remedy.strip() for _, _, meaning, remedy in rows)
    assert len({code for code, *_ in rows}) == len(rows)
    return {code: severity for code, severity, *_ in rows}


def test_the_page_explains_all_codes_and_no_others():
    assert documented() == CODES


def test_the_page_says_what_keeps_an_agent_from_starting():
    section = PAGE.read_text().partition("## Before the agent starts")[2].partition("\n## ")[0]
    assert set(re.findall(r"^- `([a-z-]+)`", section, re.MULTILINE)) == PREFLIGHT_ERRORS
    assert set(CODES) > PREFLIGHT_ERRORS


@pytest.mark.parametrize("code", sorted(CODES))
def test_before_the_start_only_what_an_agent_ends_on_is_an_error(code):
    objects = ("module ip_vs", "module xt_set")
    told = [each.severity for each in before_start(found(code, it, "", "") for it in objects)]
    if code in PREFLIGHT_ERRORS:
        assert told == [ERROR, WARNING if code == "kernel-module-missing" else ERROR]
    else:
        assert ERROR not in told


def test_every_code_is_given_by_some_check():
    files = [file for file in PACKAGE.glob("*.py") if file.name != "findings.py"]
    source = "\n".join(file.read_text() for file in files)
    assert [code for code in CODES if f'"{code}"' not in source] == []


def test_codes_are_kebab_case_and_have_a_severity():
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in CODES)
    assert set(CODES.values()) <= set(SEVERITIES)


def test_the_worst_comes_first_and_each_once():
    note = found("agent-flags-differ", "b", "what", "remedy")
    warning = found("clock-skew", "z", "what", "remedy")
    error = found("clock-skew", "a", "what", "remedy", ERROR)
    assert by_weight([note, warning, error, warning]) == (error, warning, note)
    assert [each.severity for each in (error, warning, note)] == [ERROR, WARNING, NOTE]
    assert is_bad([warning, error])
    assert not is_bad([warning, note])


# --- permissions -----------------------------------------------------------------------------


OVERLAYS = sorted(each.name for each in (REPOSITORY / "manifests/overlays").iterdir())


def built(overlay, kubectl):
    done = subprocess.run(
        [kubectl, "kustomize", str(REPOSITORY / "manifests/overlays" / overlay)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def granted(objects, kind):
    return {
        (group, resource, verb, name)
        for role in objects
        if role["kind"] == kind
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
        if resource != "secrets"
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_asked_for_is_what_each_overlay_grants(overlay, recent_kubectl):
    objects = built(overlay, recent_kubectl)
    (daemon_set,) = [each for each in objects if each["kind"] == "DaemonSet"]
    (container,) = daemon_set["spec"]["template"]["spec"]["containers"]
    asked = needed(parse(container["args"], {}))
    for kind, is_own in (("ClusterRole", False), ("Role", True)):
        assert {
            (p.group, p.resource, p.verb, p.name)
            for p in asked
            if p.is_own is is_own and p.resource != "secrets"
        } == granted(objects, kind)


def test_the_data_holds_each_permission_once():
    assert len(set(map(str, PERMISSIONS))) == len(PERMISSIONS)


def test_only_what_the_running_parts_need_is_asked_for():
    def resources(**parts):
        every = dict.fromkeys(("service_proxy", "firewall", "router", "loadbalancer"), False)
        flags = {f"run_{name}": is_on for name, is_on in {**every, **parts}.items()}
        return {each.resource for each in needed(Options(**flags))}

    shared = {"nodes", "services", "events", "leases"}
    assert resources(firewall=True) == shared | {"networkpolicies", "pods", "namespaces"}
    assert resources(service_proxy=True) == shared | {"endpointslices", "pods", "networkpolicies"}
    assert resources(router=True) == shared | {"endpointslices"}
    balancer = {"namespaces", "services/status", "configmaps", "secrets"}
    assert resources(loadbalancer=True) == shared | balancer


# --- the agent's own word ----------------------------------------------------------------------


def status(**values):
    return {"ready": True, "reason": "", "version": "1", "problems": [], "behind": {}, **values}


def problem(subject, reason, field=""):
    return {"object": subject, "field": field, "reason": reason}


def codes(findings):
    return [each.code for each in findings]


def test_a_healthy_agent_yields_nothing():
    assert list(state(status(), "1", ())) == []


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"ready": False, "reason": "router: FRR"}, "agent-not-ready"),
        ({"behind": {"Service": {"failing": "403"}}}, "agent-behind"),
        ({"version": "2"}, "agent-version-differs"),
        ({"problems": [problem("Service a/b", "odd", "spec.x")]}, "agent-problem"),
    ],
)
def test_what_the_agent_says_becomes_a_finding(values, code):
    assert codes(state(status(**values), "1", ())) == [code]


def test_without_the_api_server_its_consequences_are_not_told():
    api = found("api-unreachable", "API server x", "what", "remedy")
    told = status(ready=False, reason="waiting", behind={"Node": {"failing": "refused"}})
    assert list(state(told, "1", (api,))) == []


@pytest.mark.parametrize(
    ("subject", "reason", "code", "object"),
    [
        ("Service a/b", "203.0.113.7 is refused", "lb-ip-refused", "Service a/b"),
        ("Node n", "kube-proxy runs in mode iptables", "kube-proxy-running", "kube-proxy"),
        ("Service a/b", "no address is free", "pool-full", "pool default"),
        ("File /etc/cni/x", "container runtimes use 05-x", "cni-shadowed", "File /etc/cni/x"),
    ],
)
def test_a_problem_that_a_finding_explains_is_not_told_again(subject, reason, code, object):
    other = found(code, object, "what", "remedy")
    problems = [problem(subject, reason), problem("Pod x/y", "else")]
    (left,) = state(status(problems=problems), "1", (other,))
    assert left.object == "Pod x/y"


def test_an_agent_that_holds_its_lock_and_does_not_answer_is_silent():
    assert absent("refused", is_silent=True).code == "agent-silent"
    assert absent("no such file", is_silent=False).code == "agent-not-running"


def test_flags_that_differ_are_told_and_others_are_not():
    theirs = {"run-router": "true", "v": "0"}
    (only,) = differing({"run-router": "false", "v": "0"}, theirs)
    assert (only.code, only.object) == ("agent-flags-differ", "Flag --run-router")

"""What is deployed agrees with the code: RBAC, flags, versions; kustomize builds it."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
import yaml

import kube_router_py
from kube_router_py.address_pool_config import CONFIG_MAP, KEY, compile_pools, pool_settings
from kube_router_py.cluster.decode import RESOURCES
from kube_router_py.cluster.objects import ConfigMap, Lease
from kube_router_py.firewall.controller import KINDS as FIREWALL_KINDS
from kube_router_py.kernel.frr_preflight import lacking_capabilities
from kube_router_py.lab.sandbox import CAPABILITIES
from kube_router_py.loadbalancer.controller import KINDS as ALLOCATION_KINDS
from kube_router_py.options import Options, parse
from kube_router_py.proxy.dirty_keys import KINDS as PROXY_KINDS
from kube_router_py.routing.controller import KINDS as ROUTING_KINDS

REPOSITORY = Path(__file__).parents[3]
MANIFESTS = REPOSITORY / "manifests"
# What each overlay runs: service proxy, firewall, route controller.
PARTS = {
    "overlays/all": (True, True, True),
    "overlays/service-proxy": (True, False, False),
    "overlays/dsr": (True, False, False),
    "overlays/service-proxy-firewall": (True, True, False),
    "overlays/firewall": (False, True, False),
    "overlays/load-balancer": (True, True, True),
}
# Roles of one Secret each, and ConfigMaps, that overlays have beside those of the base.
MORE = {
    "overlays/all": ["Role", "RoleBinding"],
    "overlays/load-balancer": ["ConfigMap", *["Role", "RoleBinding"] * 2],
}
OVERLAYS = tuple(PARTS)
DIRECTORIES = ("base", *OVERLAYS)


def documents(directory):
    """The objects of one kustomization directory itself, without its bases."""
    found = []
    for file in sorted((MANIFESTS / directory).glob("*.yaml")):
        if file.name != "kustomization.yaml":
            found += list(yaml.safe_load_all(file.read_text()))
    return found


def of_kind(kind, directory="base"):
    (found,) = [obj for obj in documents(directory) if obj["kind"] == kind]
    return found


def container(directory="base"):
    return of_kind("DaemonSet", directory)["spec"]["template"]["spec"]["containers"][0]


def allowed(kind):
    return {
        (group, resource, verb)
        for rule in of_kind(kind)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def resource(kind):
    group = re.fullmatch(r"/(?:api|apis/([^/]+))/[^/]+/\w+", RESOURCES[kind].path)[1] or ""
    return group, RESOURCES[kind].plural


def test_the_roles_allow_exactly_what_is_asked_for():
    watched = {
        (*resource(kind), verb)
        for kind in {*PROXY_KINDS, *FIREWALL_KINDS, *ROUTING_KINDS, *ALLOCATION_KINDS}
        for verb in ("list", "watch")
    }
    written = {("", "events", "create"), ("", "services/status", "patch")}
    assert allowed("ClusterRole") == watched | written
    leases = {(*resource(Lease), verb) for verb in ("create", "list", "patch", "watch")}
    pools = {(*resource(ConfigMap), verb) for verb in ("list", "watch")}
    assert allowed("Role") == leases | pools


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_arguments_are_flags_of_this_version(directory):
    parse(container(directory)["args"], {})


@pytest.mark.parametrize("directory", OVERLAYS)
def test_the_overlays_run_what_they_are_called_after(directory):
    options = parse(container(directory)["args"], {})
    parts = (options.run_service_proxy, options.run_firewall, options.run_router)
    assert parts == PARTS[directory]
    assert options.run_loadbalancer == (directory == "overlays/load-balancer")


def has_all_that_frr_needs(capabilities):
    """Whether a process with these (names of capabilities(7) without CAP_) may run FRR."""
    held = sum(1 << CAPABILITIES.index(name) for name in capabilities)
    return not lacking_capabilities(f"CapEff:\t{held:016x}")


def test_the_probes_ask_where_the_agent_answers():
    agent = container()
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert agent[probe]["httpGet"] == {"path": path, "port": Options().health_port}


def test_the_pod_is_no_more_privileged_than_it_needs_and_survives_what_it_must():
    spec = of_kind("DaemonSet")["spec"]["template"]["spec"]
    assert spec["hostNetwork"] is True
    assert spec["enableServiceLinks"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    security = container()["securityContext"]
    assert security["privileged"] is False
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}


def test_what_enters_pods_may_see_their_processes_and_nothing_else_is_added():
    spec = of_kind("DaemonSet", "overlays/dsr")["spec"]["template"]["spec"]
    assert spec["hostPID"] is True
    assert set(spec) == {"hostPID", "containers"}
    security = container("overlays/dsr")["securityContext"]
    added = set(security["capabilities"].pop("add"))
    usual = set(container()["securityContext"]["capabilities"]["add"])
    assert added - usual == {"SYS_ADMIN", "SYS_PTRACE"}
    assert usual <= added
    assert security == {
        "appArmorProfile": {"type": "Unconfined"},
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_routes_may_run_frr_and_keeps_its_sockets_and_the_cni_file_on_the_node():
    spec = of_kind("DaemonSet", "overlays/all")["spec"]["template"]["spec"]
    assert set(spec) == {"containers", "volumes"}
    agent = container("overlays/all")
    added = set(agent["securityContext"]["capabilities"]["add"])
    assert agent["securityContext"] == {
        "capabilities": {"drop": ["ALL"], "add": agent["securityContext"]["capabilities"]["add"]}
    }
    assert has_all_that_frr_needs(added)
    usual = set(container()["securityContext"]["capabilities"]["add"])
    assert not any(has_all_that_frr_needs(added - {name}) for name in added - usual)
    assert usual <= added
    env = {variable["name"]: variable["value"] for variable in agent["env"]}
    options = parse(agent["args"], env)
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    for mount in agent["volumeMounts"]:
        assert mount["mountPath"] == paths[mount["name"]]
        assert not mount.get("readOnly")
    assert options.frr_dir.startswith(f"{paths['run']}/")
    assert str(Path(options.cni_conf_file).parent) == paths["cni-conf"]


def test_kernel_parameters_are_written_where_they_are_mounted():
    options = parse(container()["args"], {})
    mounts = {mount["name"]: mount for mount in container()["volumeMounts"]}
    assert mounts["proc-sys-net"]["mountPath"] == f"{options.proc_sys_path}/net"
    assert not mounts["proc-sys-net"].get("readOnly")


def test_the_way_to_the_api_server_is_configured_and_not_the_one_pods_are_given():
    settings = of_kind("ConfigMap")
    env = {variable["name"]: variable["valueFrom"] for variable in container()["env"]}
    for name, key in (("HOST", "api-host"), ("PORT", "api-port")):
        reference = env[f"KUBERNETES_SERVICE_{name}"]["configMapKeyRef"]
        assert reference == {"name": settings["metadata"]["name"], "key": key}
        assert key in settings["data"]
    assert env["NODE_NAME"]["fieldRef"]["fieldPath"] == "spec.nodeName"
    assert env["POD_NAME"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert env["POD_NAMESPACE"]["fieldRef"]["fieldPath"] == "metadata.namespace"


def test_names_fit_together():
    account = of_kind("ServiceAccount")["metadata"]
    binding = of_kind("ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]
    assert binding["roleRef"]["name"] == of_kind("ClusterRole")["metadata"]["name"]
    spec = of_kind("DaemonSet")["spec"]
    assert spec["template"]["spec"]["serviceAccountName"] == account["name"]
    assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_the_image_carries_this_version():
    assert container()["image"] == f"kube-router-py:{kube_router_py.__version__}"
    assert f"kube-router-py:{kube_router_py.__version__}" in dockerfile_text()


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_kustomize_builds_all_objects(directory, recent_kubectl):
    done = subprocess.run(
        [recent_kubectl, "kustomize", str(MANIFESTS / directory)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert sorted(obj["kind"] for obj in built) == sorted(
        [*(obj["kind"] for obj in documents("base")), *MORE.get(directory, [])]
    )
    (daemon_set,) = [obj for obj in built if obj["kind"] == "DaemonSet"]
    assert (
        daemon_set["spec"]["template"]["spec"]["containers"][0]["args"]
        == container(directory)["args"]
    )


@pytest.mark.parametrize(
    ("file", "secret"),
    [
        ("overlays/all/passwords.yaml", "kube-router-py-bgp"),
        ("overlays/load-balancer/heartbeat.yaml", Options().loadbalancer_heartbeat_secret),
    ],
)
def test_the_agent_may_read_one_secret_and_no_others(file, secret):
    role, binding = yaml.safe_load_all((MANIFESTS / file).read_text())
    (rule,) = role["rules"]
    assert (rule["resources"], rule["verbs"]) == (["secrets"], ["get"])
    assert rule["resourceNames"] == [secret]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = of_kind("ServiceAccount")["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]


def test_the_address_pools_of_the_example_are_taken_as_they_are():
    found = of_kind("ConfigMap", "overlays/load-balancer")
    options = parse(container("overlays/load-balancer")["args"], {})
    settings = pool_settings(options, found["metadata"]["namespace"])
    assert found["metadata"]["name"] == CONFIG_MAP
    compiled = compile_pools(settings, found["data"][KEY])
    assert compiled.problems == ()
    assert {each.name for each in compiled.pools.pools} == {"default", "by-request"}
    assert all(each.announcing.layer2 for each in compiled.pools.pools)


# --- Dockerfile and systemd unit ----------------------------------------------------------------


def dockerfile_text():
    return (REPOSITORY / "Dockerfile").read_text()


def instructions():
    """(instruction, arguments) of the Dockerfile, continuation lines joined."""
    lines = [line for line in dockerfile_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_is_well_formed_and_pins_its_base():
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "EXPOSE", "ENTRYPOINT"}
    found = instructions()
    assert {name for name, _ in found} <= known
    bases = [arguments.split()[0] for name, arguments in found if name == "FROM"]
    assert bases == ["python:3.11-slim-bookworm"] * 2
    assert found[-1] == ("ENTRYPOINT", '["kube-router-py"]')


def test_the_image_has_the_programs_that_the_agent_runs():
    # Those of the last stage; an earlier one installs what only the build needs.
    install = [arguments for name, arguments in instructions() if "apt-get install" in arguments]
    assert {"frr", "iptables", "ipset"} <= set(install[-1].split())


def test_the_dockerfile_copies_what_exists_and_is_not_ignored():
    kept = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    for name, arguments in instructions():
        if name == "COPY" and "--from" not in arguments:
            for source in arguments.split()[:-1]:
                assert (REPOSITORY / source).exists(), source
                assert source in kept


def test_the_systemd_unit_starts_the_agent_and_spares_the_data_plane():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(MANIFESTS / "systemd/kube-router-py.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    assert service["ExecStart"].endswith("/kube-router-py")
    assert service["Restart"] == "always"
    assert "RestartPreventExitStatus" not in service, "a file or a port may be there later"
    assert service["KillMode"] == "process", "FRR's daemons go on"
    assert service["RuntimeDirectoryPreserve"] == "yes"
    assert Options().frr_dir.startswith(f"/run/{service['RuntimeDirectory']}/")
    # bfdd's socket for echo packets; it exits where it gets none.
    assert "AF_PACKET" in service["RestrictAddressFamilies"].split()
    held = service["CapabilityBoundingSet"].replace("\\\n", " ").split()
    assert has_all_that_frr_needs(name.removeprefix("CAP_") for name in held)
    environ = dict([service["Environment"].split("=", 1)])
    assert parse([], environ).kubeconfig == "/etc/kubernetes/kube-router-py.conf"

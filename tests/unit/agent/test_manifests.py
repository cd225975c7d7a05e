"""What is deployed agrees with the code: flags, mounts, versions; kustomize builds it."""

import json
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

import kube_router_py
from kube_router_py.address_pool_config import CONFIG_MAP, KEY, compile_pools, pool_settings
from kube_router_py.cni_plugins import USUAL
from kube_router_py.kernel import table_names
from kube_router_py.kernel.frr_preflight import lacking_capabilities
from kube_router_py.lab.manifests import render_kustomization
from kube_router_py.lab.sandbox import CAPABILITIES
from kube_router_py.options import Options, parse
from kube_router_py.routing.cni import compile_cni

REPOSITORY = Path(__file__).parents[3]
MANIFESTS = REPOSITORY / "manifests"
# What each overlay runs: service proxy, firewall, route controller.
PARTS = {
    "overlays/all": (True, True, True),
    "overlays/service-proxy": (True, False, False),
    "overlays/dsr": (True, False, False),
    "overlays/service-proxy-firewall": (True, True, False),
    "overlays/firewall": (False, True, False),
    "overlays/router": (False, False, True),
    "overlays/load-balancer": (True, True, True),
}
OVERLAYS = tuple(PARTS)
DIRECTORIES = ("base", *OVERLAYS)
ROUTING = tuple(directory for directory, parts in PARTS.items() if parts[2])


def rendered(directory="base"):
    """All objects of a kustomization directory, as they are applied."""
    return render_kustomization(MANIFESTS / directory)


def of_kind(kind, directory="base", name="kube-router-py"):
    (found,) = [
        obj for obj in rendered(directory) if (obj["kind"], obj["metadata"]["name"]) == (kind, name)
    ]
    return found


def pod(directory="base"):
    return of_kind("DaemonSet", directory)["spec"]["template"]["spec"]


def container(directory="base"):
    (found,) = pod(directory)["containers"]
    return found


def init_container(name, directory):
    (found,) = [each for each in pod(directory)["initContainers"] if each["name"] == name]
    return found


def added(directory):
    return set(container(directory)["securityContext"]["capabilities"]["add"])


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
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("livenessProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
    ):
        assert agent[probe]["httpGet"] == {"path": path, "port": Options().health_port}


def test_an_agent_that_starts_has_longer_than_it_waits_for_the_one_before():
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 30 + 60


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_pod_survives_what_it_must(directory):
    spec = pod(directory)
    assert spec["hostNetwork"] is True
    assert spec["enableServiceLinks"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["priorityClassName"] == "system-node-critical"
    assert of_kind("DaemonSet", directory)["spec"]["updateStrategy"]["type"] == "RollingUpdate"


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_no_two_nodes_lose_their_bgp_sessions_at_a_time(directory):
    """FRR ends with the agent's container; what the kernel has goes on serving."""
    spec = of_kind("DaemonSet", directory)["spec"]
    rolling = spec["updateStrategy"]["rollingUpdate"]
    if directory in ROUTING:
        assert rolling == {"maxUnavailable": 1}
        assert spec["minReadySeconds"] >= 10
    else:
        assert rolling == {"maxUnavailable": "10%"}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_of_the_nodes_files_only_what_is_written_is_mounted_for_writing(directory):
    """A socket may be sent to where its directory is read-only."""
    writable = {
        mount["name"] for mount in container(directory)["volumeMounts"] if not mount.get("readOnly")
    }
    ours = {"xtables-lock", "proc-sys-net", "run", "tmp"}
    routing = {"cni-conf", "run-frr", "rt-tables"} if directory in ROUTING else set()
    assert writable == ours | routing


@pytest.mark.parametrize("directory", ROUTING)
def test_the_names_of_routing_tables_have_a_place(directory):
    """Of the container alone: else every start warns that the root is read-only."""
    (mount,) = [e for e in container(directory)["volumeMounts"] if e["name"] == "rt-tables"]
    assert Path(mount["mountPath"]) == Path(table_names.DIRECTORY, table_names.FILE).parent
    (volume,) = [e for e in pod(directory)["volumes"] if e["name"] == "rt-tables"]
    assert volume == {"name": "rt-tables", "emptyDir": {}}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_doctor_looks_first_from_where_the_agent_will_be(directory):
    doctor, agent = init_container("doctor", directory), container(directory)
    assert pod(directory)["initContainers"][-1] == doctor
    assert doctor["args"] == ["doctor", "--preflight", *agent["args"]]
    for key in ("env", "image", "imagePullPolicy", "resources", "securityContext", "volumeMounts"):
        assert doctor[key] == agent[key], key


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_no_container_is_privileged_and_none_can_write_to_its_root(directory):
    for each in (*pod(directory)["containers"], *pod(directory)["initContainers"]):
        security = each["securityContext"]
        assert security["privileged"] is False
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        # SELinux: else the node's files are out of reach of what is not privileged.
        assert security["seLinuxOptions"] == {"type": "spc_t", "level": "s0"}
        assert security["capabilities"]["drop"] == ["ALL"]
        assert each["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in each["resources"]["limits"]
        assert each["image"] == f"kube-router-py:{kube_router_py.__version__}"


def test_the_agent_has_no_more_capabilities_than_it_needs():
    for directory in ("base", "overlays/service-proxy", "overlays/firewall"):
        assert added(directory) == {"NET_ADMIN", "NET_RAW"}


def test_what_enters_pods_may_see_their_processes_and_nothing_else_is_added():
    usual, entering = pod(), pod("overlays/dsr")
    assert entering.pop("hostPID") is True
    assert added("overlays/dsr") - added("base") == {"SYS_ADMIN", "SYS_PTRACE"}
    assert added("base") <= added("overlays/dsr")
    for name in ("containers", "initContainers"):
        for ours, theirs in zip(usual[name], entering[name], strict=True):
            security = theirs["securityContext"]
            assert security.pop("appArmorProfile") == {"type": "Unconfined"}
            security["capabilities"] = ours["securityContext"]["capabilities"]
            theirs["args"] = ours["args"]
    assert entering == usual


@pytest.mark.parametrize("directory", ROUTING)
def test_what_routes_may_run_frr_and_keeps_its_sockets_and_the_cni_file_on_the_node(directory):
    agent = container(directory)
    capabilities = added(directory)
    assert has_all_that_frr_needs(capabilities)
    usual = added("base")
    assert not any(has_all_that_frr_needs(capabilities - {name}) for name in capabilities - usual)
    assert usual <= capabilities
    env = {each["name"]: each["value"] for each in agent["env"] if "value" in each}
    options = parse(agent["args"], env)
    assert str(Path(options.cni_conf_file).parent) == mounted(agent, "cni-conf", directory)
    assert options.frr_dir.startswith(f"{mounted(agent, 'run', directory)}/")


@pytest.mark.parametrize("directory", ROUTING)
def test_the_cni_file_is_made_of_a_configmap_that_says_what_it_would_be_without(directory):
    agent = container(directory)
    env = {each["name"]: each["value"] for each in agent["env"] if "value" in each}
    options = parse(agent["args"], env)
    (mount,) = [each for each in agent["volumeMounts"] if each["name"] == "cni-template"]
    (volume,) = [each for each in pod(directory)["volumes"] if each["name"] == "cni-template"]
    found = of_kind("ConfigMap", directory, volume["configMap"]["name"])
    key = Path(options.cni_conf_template).name
    assert str(Path(options.cni_conf_template).parent) == mount["mountPath"]
    cidrs, path = [ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")], options.cni_conf_file
    made = compile_cni(None, path, "node1", cidrs, 1480, found["data"][key])
    assert made.problems == ()
    assert json.loads(made.text) == json.loads(compile_cni(None, path, "node1", cidrs, 1480).text)


def mounted(agent, name, directory):
    """Where a host path is mounted for writing, at the same place as on the node."""
    (mount,) = [each for each in agent["volumeMounts"] if each["name"] == name]
    (volume,) = [each for each in pod(directory)["volumes"] if each["name"] == name]
    assert mount["mountPath"] == volume["hostPath"]["path"]
    assert not mount.get("readOnly")
    return mount["mountPath"]


@pytest.mark.parametrize("directory", ROUTING)
def test_what_routes_has_its_plugins_installed_first_and_by_nothing_else(directory):
    first, *others = [*pod(directory)["initContainers"], container(directory)]
    assert first["name"] == "install-cni"
    command, *words = first["args"]
    assert command == "install-cni"
    flags = dict(word.split("=", 1) for word in words)
    assert flags.keys() == {"--from", "--to"}
    assert first["volumeMounts"] == [{"name": "cni-bin", "mountPath": flags["--to"]}]
    (volume,) = [each for each in pod(directory)["volumes"] if each["name"] == "cni-bin"]
    assert volume["hostPath"]["path"] == "/opt/cni/bin"
    assert first["securityContext"]["capabilities"]["add"] == ["DAC_OVERRIDE"]
    for each in others:
        assert all(mount["name"] != "cni-bin" for mount in each["volumeMounts"])
    kept = (REPOSITORY / "image/dpkg.cfg").read_text().split()
    assert {f"path-include={flags['--from']}/{plugin}" for plugin in USUAL} <= set(kept)


@pytest.mark.parametrize("directory", sorted(set(DIRECTORIES) - set(ROUTING)))
def test_where_another_plugin_makes_the_pod_network_its_directories_are_not_mounted(directory):
    paths = {each.get("hostPath", {}).get("path", "") for each in pod(directory)["volumes"]}
    assert not any("cni" in path for path in paths)


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
    found = of_kind("ConfigMap", "overlays/load-balancer", CONFIG_MAP)
    options = parse(container("overlays/load-balancer")["args"], {})
    settings = pool_settings(options, found["metadata"]["namespace"])
    compiled = compile_pools(settings, found["data"][KEY])
    assert compiled.problems == ()
    assert {each.name for each in compiled.pools.pools} == {"default", "by-request"}
    assert all(each.announcing.layer2 for each in compiled.pools.pools)

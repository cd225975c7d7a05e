"""``doctor``: its arguments."""

import os
import sys

from kube_router_py.commands.arguments import (
    FAILED,
    OK,
    answered,
    checked,
    output_format,
    take,
)

USAGE = """\
Usage: kube-router-py doctor [--preflight] [--bundle FILE] [--output text|json] [FLAG...]

Looks whether this node has what the agent needs, and what stands in its way: kernel modules and
parameters, rules of others, leftovers of kube-proxy or another CNI, BGP, MTUs, the API server and
what it permits, clock, pod CIDR, CNI files. Each finding has a remedy; docs/doctor.md explains all.
It changes nothing. Run it as root, on the node or in the agent's pod: an agent that runs is asked
for its flags and for what it knows to be wrong. Before its first start give the same flags here.

      --preflight           only what has to be right before the agent starts, by the flags given;
                            for an init container
      --bundle=FILE         write a tar.gz for whoever is to help: status, findings, rules, sets,
                            routes, BGP, logs; without passwords, tokens and Secrets
  -o, --output=FORMAT       text (default) or json
  -h, --help                show this text

Exit codes: 0 no errors, though maybe warnings; 1 errors; 2 a mistake in the flags.
"""

_OWN = {"--preflight": ("preflight", False), "--bundle": ("bundle", True)}


def main(arguments: list[str]) -> int:
    """Returns the exit code. Raises KubeRouterError."""
    own, rest, words, mistakes = take(arguments, _OWN)
    if answered(own, USAGE):
        return OK
    output = output_format(own, mistakes)
    is_preflight = "preflight" in own
    if is_preflight and "bundle" in own:
        mistakes.append("--preflight and --bundle do not go together")
    options = checked([*rest, *words], mistakes)

    from msgspec import json

    import kube_router_py
    from kube_router_py.agent import node_name
    from kube_router_py.colours import Painter
    from kube_router_py.doctor import place as places
    from kube_router_py.doctor.examine import examine
    from kube_router_py.doctor.findings import Finding, is_bad
    from kube_router_py.doctor.report import document, lines

    before: list[Finding] = []
    place = places.without_agent(options, os.environ)
    if not is_preflight:
        place, before = places.find(options, rest, os.environ)
    name = str((place.status or {}).get("node") or node_name(place.options, place.environ))
    findings = examine(place, before, name, is_preflight=is_preflight)
    told = document(findings, name, kube_router_py.__version__)
    if output == "json":
        sys.stdout.write(json.format(json.encode(told), indent=1).decode() + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(findings, Painter(sys.stdout), name))
    if "bundle" in own:
        from kube_router_py.doctor.bundle import write_bundle

        path = own["bundle"][-1]
        size = write_bundle(path, place, told)
        print(f"wrote {path} ({size} bytes)", file=sys.stderr)
    return FAILED if is_bad(findings) else OK

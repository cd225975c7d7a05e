"""Discovery, version and OpenAPI documents: what kubectl reads before it does anything."""

from __future__ import annotations

from .resources import ALL_VERBS, GROUP_VERSIONS, REGISTRY, Resource
from .status import Object

VERSION: Object = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+kube-router-py-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}


def _group(name: str) -> Object:
    versions = [
        {"groupVersion": f"{group}/{version}", "version": version}
        for group, version in GROUP_VERSIONS
        if group == name
    ]
    return {"name": name, "versions": versions, "preferredVersion": versions[0]}


def _entries(resource: Resource) -> list[Object]:
    entry: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": ["create"] if resource.create_only else list(ALL_VERBS),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    entries = [entry]
    part = {"singularName": "", "namespaced": resource.namespaced}
    verbs = ["get", "patch", "update"]
    if resource.has_scale:
        entries.append(
            {**part, "name": f"{resource.plural}/scale", "group": "autoscaling", "version": "v1",
             "kind": "Scale", "verbs": verbs}
        )  # fmt: skip
    if resource.has_status:
        name = f"{resource.plural}/status"
        entries.append({**part, "name": name, "kind": resource.kind, "verbs": verbs})
    return entries


def _resource_list(group: str, version: str) -> Object:
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{group}/{version}" if group else version,
        "resources": [
            entry
            for resource in REGISTRY
            if (resource.group, resource.version) == (group, version)
            for entry in _entries(resource)
        ],
    }


def _openapi_path(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def _openapi(group: str, version: str) -> Object:
    """Just enough for kubectl to leave field validation to the server."""
    paths: Object = {}
    for resource in REGISTRY:
        if (resource.group, resource.version) != (group, version) or resource.create_only:
            continue
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        gvk = {"group": group, "version": version, "kind": resource.kind}
        media = (
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
        )
        paths[f"{resource.base_path}{scope}/{resource.plural}/{{name}}"] = {
            "patch": {
                "operationId": f"patch{resource.kind}",
                "parameters": [
                    {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
                ],
                "requestBody": {"content": {name: {} for name in media}},
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": gvk,
            }
        }
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes (kube-router-py lab)", "version": VERSION["gitVersion"]},
        "paths": paths,
        "components": {"schemas": {}},
    }


def document(path: str, server_address: str) -> Object | None:
    """The document served at a path, or None."""
    groups = [name for name in dict.fromkeys(group for group, _ in GROUP_VERSIONS) if name]
    if path == "/version":
        return VERSION
    if path == "/api":
        cidrs = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server_address}]
        return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": cidrs}
    if path == "/apis":
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g) for g in groups]}
    if path == "/openapi/v3":
        urls = (_openapi_path(*group_version) for group_version in GROUP_VERSIONS)
        return {"paths": {url: {"serverRelativeURL": f"/openapi/v3/{url}?hash=1"} for url in urls}}
    if path == "/":
        paths = [f"/{_openapi_path(*group_version)}" for group_version in GROUP_VERSIONS]
        return {"paths": ["/api", "/apis", *paths, "/healthz", "/livez", "/readyz", "/version"]}
    for group, version in GROUP_VERSIONS:
        url = _openapi_path(group, version)
        if path == f"/{url}":
            return _resource_list(group, version)
        if path == f"/openapi/v3/{url}":
            return _openapi(group, version)
    name = path.removeprefix("/apis/")
    if name in groups:
        return {"kind": "APIGroup", "apiVersion": "v1", **_group(name)}
    return None

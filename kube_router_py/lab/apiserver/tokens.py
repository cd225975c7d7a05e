"""Who asks: bearer tokens of the administrator and of ServiceAccounts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import NamedTuple

from .status import forbidden, unauthorized


class User(NamedTuple):
    """An authenticated caller, as RBAC names it."""

    name: str
    groups: tuple[str, ...] = ()

    @property
    def is_master(self) -> bool:
        """Members of system:masters may do everything."""
        return "system:masters" in self.groups


def service_account(namespace: str, name: str) -> User:
    """The user a ServiceAccount's token stands for."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{namespace}")
    return User(f"system:serviceaccount:{namespace}:{name}", (*groups, "system:authenticated"))


class Tokens:
    """Every token that was issued; they stay valid when the server stops and starts."""

    def __init__(self) -> None:
        self.admin = secrets.token_urlsafe(24)
        admin = User("kubernetes-admin", ("system:masters", "system:authenticated"))
        self._users = {self.admin: admin}

    def issue(self, namespace: str, name: str) -> str:
        """A new token for a ServiceAccount (which need not exist)."""
        token = secrets.token_urlsafe(24)
        self._users[token] = service_account(namespace, name)
        return token

    def revoke(self, token: str) -> None:
        """Answer 401 to this token from now on."""
        self._users.pop(token, None)

    def user_of(self, headers: Mapping[str, str], impersonated_groups: list[str]) -> User:
        """The caller, or whom a master impersonates (kubectl --as); 401 without a known token."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        user = self._users.get(token.strip()) if scheme.lower() == "bearer" else None
        if user is None:
            raise unauthorized()
        name = headers.get("Impersonate-User")
        if not name:
            return user
        if not user.is_master:
            raise forbidden("users", name, f'User "{user.name}" cannot impersonate')
        parts = name.split(":")
        if parts[:2] == ["system", "serviceaccount"] and len(parts) == 4:
            return service_account(parts[2], parts[3])
        return User(name, (*impersonated_groups, "system:authenticated"))


def kubeconfig(server: str, ca_data: str, token: str, namespace: str = "default") -> str:
    """A kubeconfig file as text; ``ca_data`` is the CA certificate in base64."""
    return f"""\
apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: {server}
    certificate-authority-data: {ca_data}
users:
- name: lab
  user:
    token: {token}
contexts:
- name: lab
  context:
    cluster: lab
    user: lab
    namespace: {namespace}
current-context: lab
"""

"""By which policies the pods of this node are held, and whether that is only an audit. Pure."""

from msgspec import Struct

from kube_router_py.firewall.membership import Membership
from kube_router_py.firewall.model import Direction, PodFacts, Policy, Selection


class Hold(Struct, frozen=True):
    """What holds a pod in one direction: the keys of policies, sorted. With ``is_audited`` all of
    them are audited, and nothing is refused."""

    policies: tuple[str, ...]
    is_audited: bool = False


Isolation = dict[Direction, Hold]


class Holding:
    """Policies, the Namespaces that may have them audited, and the pods of this node."""

    def __init__(self) -> None:
        self._policies: dict[str, Policy] = {}
        self._pods: dict[str, PodFacts] = {}
        self._targets = Membership()
        self._by_target: dict[Selection, set[str]] = {}
        self._audited_spaces: set[str] = set()
        # By namespace: the targets of policies there that leave it to the namespace, each counted.
        self._left_to: dict[str, dict[Selection, int]] = {}
        self._dirty: set[str] = set()

    def pod(self, key: str) -> PodFacts | None:
        return self._pods.get(key)

    def policy(self, key: str) -> Policy | None:
        return self._policies.get(key)

    def put_pod(self, key: str, pod: PodFacts | None) -> None:
        """A pod of this node; None: there is none of that name, or not here."""
        if pod is None:
            if self._pods.pop(key, None) is None:
                return
        else:
            self._pods[key] = pod
        self._targets.put_pod(key, pod)
        self._dirty.add(key)

    def put_namespace(self, name: str, *, is_audited: bool) -> None:
        if is_audited == (name in self._audited_spaces):
            return
        (self._audited_spaces.add if is_audited else self._audited_spaces.discard)(name)
        for target in self._left_to.get(name, ()):
            self._dirty.update(self._targets.members(target))

    def put_policy(self, key: str, policy: Policy | None) -> bool:
        """Whether it is another than before."""
        old = self._policies.get(key)
        if old == policy:
            return False
        if old is not None and old.target is not None:
            self._dirty.update(self._targets.members(old.target))
            self._targets.remove(old.target)
            users = self._by_target[old.target]
            users.discard(key)
            if not users:
                del self._by_target[old.target]
            self._leave(old, old.target, -1)
        if policy is None:
            del self._policies[key]
            return True
        self._policies[key] = policy
        if policy.target is not None:
            self._targets.add(policy.target)
            self._by_target.setdefault(policy.target, set()).add(key)
            self._dirty.update(self._targets.members(policy.target))
            self._leave(policy, policy.target, 1)
        return True

    def _leave(self, policy: Policy, target: Selection, step: int) -> None:
        if policy.audit is not None:
            return
        left = self._left_to.setdefault(target.namespace, {})
        left[target] = left.get(target, 0) + step
        if not left[target]:
            del left[target]
            if not left:
                del self._left_to[target.namespace]

    def take_dirty(self) -> set[str]:
        """The pods that may be held by others since this was last called."""
        for move in self._targets.take_moves():
            self._dirty.update(pod.key for pod in (move.old, move.new) if pod is not None)
        dirty, self._dirty = self._dirty, set()
        return dirty

    def is_audited(self, key: str) -> bool:
        """Of a policy that there is."""
        policy = self._policies[key]
        if policy.audit is not None:
            return policy.audit
        return policy.target is not None and policy.target.namespace in self._audited_spaces

    def isolation(self, pod: PodFacts) -> Isolation:
        """A policy that is enforced isolates the pod for real: audited ones only admit then."""
        found: dict[Direction, list[str]] = {}
        enforced: set[Direction] = set()
        for selection in self._targets.selections_of(pod):
            for key in self._by_target[selection]:
                directions = self._policies[key].rules.keys()
                for direction in directions:
                    found.setdefault(direction, []).append(key)
                if not self.is_audited(key):
                    enforced |= directions
        return {
            direction: Hold(tuple(sorted(keys)), direction not in enforced)
            for direction, keys in sorted(found.items())
        }

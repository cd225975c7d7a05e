"""Which pods a selection selects, kept by an index: a change costs what it touches. Pure.

Every selection hangs at one anchor, a label value (or label) without which no pod can be in it;
a pod is compared only with the selections at the anchors of its own labels, and with the few that
have none. Namespace selectors are compared with namespaces, not with pods.
"""

from collections.abc import Iterable, Iterator, Mapping

from msgspec import Struct

from kube_router_py.cluster.selectors import Selector
from kube_router_py.firewall.model import PodFacts, Selection

_Anchor = tuple[str, str, str | None]
"""(namespace or "", label or "", value); value None: whatever value the label has."""


class Move(Struct, frozen=True):
    """A pod came into a selection (``old`` is None), left it (``new`` is None), or stayed and is
    another than it was."""

    selection: Selection
    old: PodFacts | None
    new: PodFacts | None


class Membership:
    """Selections with their members. ``take_moves`` tells what changed since it was last called;
    what a selection has at the time it is added is no move: ask ``members``."""

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._pods: dict[str, PodFacts] = {}
        self._pods_of: dict[str, dict[str, PodFacts]] = {}
        self._users: dict[Selection, int] = {}
        self._members: dict[Selection, dict[str, PodFacts]] = {}
        self._anchored: dict[_Anchor, set[Selection]] = {}
        # Selections by namespace selector, and the namespaces that each of these selects; without
        # the selector that sets no condition: it holds before a namespace is heard of.
        self._by_namespaces: dict[Selector, set[Selection]] = {}
        self._selected: dict[Selector, set[str]] = {}
        self._moves: list[Move] = []

    def members(self, selection: Selection) -> Mapping[str, PodFacts]:
        """The members of a selection that is in use, by pod key."""
        return self._members[selection]

    def selections_of(self, pod: PodFacts) -> Iterator[Selection]:
        """The selections in use that a pod is in."""
        return (each for each in self._candidates(pod) if self._selects(each, pod))

    def take_moves(self) -> list[Move]:
        moves, self._moves = self._moves, []
        return moves

    def add(self, selection: Selection) -> None:
        """Begin to follow a selection; as many removals end it."""
        users = self._users.get(selection, 0)
        self._users[selection] = users + 1
        if users:
            return
        for anchor in _anchors(selection):
            self._anchored.setdefault(anchor, set()).add(selection)
        chosen = selection.namespaces
        spaces: Iterable[str] = (selection.namespace,) if selection.namespace else self._pods_of
        if chosen.requirements:
            self._by_namespaces.setdefault(chosen, set()).add(selection)
            if chosen not in self._selected:
                self._selected[chosen] = {
                    name for name, labels in self._labels.items() if chosen.selects(labels)
                }
            spaces = self._selected[chosen]
        self._members[selection] = {
            key: pod
            for space in spaces
            for key, pod in self._pods_of.get(space, {}).items()
            if selection.pods.selects(pod.labels)
        }

    def remove(self, selection: Selection) -> None:
        """Take back one ``add``."""
        self._users[selection] -= 1
        if self._users[selection]:
            return
        del self._users[selection], self._members[selection]
        for anchor in _anchors(selection):
            _discard(self._anchored, anchor, selection)
        chosen = selection.namespaces
        if chosen.requirements and _discard(self._by_namespaces, chosen, selection):
            del self._selected[chosen]

    def put_pod(self, key: str, new: PodFacts | None) -> None:
        """A pod came, changed or went (None)."""
        old = self._pods.get(key)
        if old == new:
            return
        before = set(self.selections_of(old)) if old else set()
        after = set(self.selections_of(new)) if new else set()
        if old is not None:
            del self._pods[key]
            space = self._pods_of[old.namespace]
            del space[key]
            if not space:
                del self._pods_of[old.namespace]
        if new is not None:
            self._pods[key] = new
            self._pods_of.setdefault(new.namespace, {})[key] = new
        for selection in before - after:
            self._move(selection, key, old, None)
        for selection in after:
            self._move(selection, key, old if selection in before else None, new)

    def put_namespace(self, name: str, labels: Mapping[str, str] | None) -> None:
        """A namespace came, got other labels, or went (None: no condition on labels holds)."""
        if labels is None:
            self._labels.pop(name, None)
        else:
            self._labels[name] = labels
        for chosen, spaces in self._selected.items():
            is_in = labels is not None and chosen.selects(labels)
            if is_in == (name in spaces):
                continue
            (spaces.add if is_in else spaces.discard)(name)
            for selection in self._by_namespaces[chosen]:
                for key, pod in self._pods_of.get(name, {}).items():
                    if selection.pods.selects(pod.labels):
                        self._move(selection, key, None if is_in else pod, pod if is_in else None)

    def _move(
        self, selection: Selection, key: str, old: PodFacts | None, new: PodFacts | None
    ) -> None:
        if new is None:
            del self._members[selection][key]
        else:
            self._members[selection][key] = new
        self._moves.append(Move(selection, old, new))

    def _candidates(self, pod: PodFacts) -> Iterator[Selection]:
        for space in (pod.namespace, ""):
            yield from self._anchored.get((space, "", None), ())
            for label, value in pod.labels.items():
                yield from self._anchored.get((space, label, None), ())
                yield from self._anchored.get((space, label, value), ())

    def _selects(self, selection: Selection, pod: PodFacts) -> bool:
        chosen = selection.namespaces
        if chosen.requirements and pod.namespace not in self._selected[chosen]:
            return False
        return selection.pods.selects(pod.labels)


def _anchors(selection: Selection) -> Iterator[_Anchor]:
    """Where a selection hangs: at the values of its narrowest condition. A pod has at most one of
    them, so that it never meets the same selection twice."""
    requirements = selection.pods.requirements
    narrow = [each for each in requirements if each.operator == "In"]
    if narrow:
        best = min(narrow, key=lambda each: len(each.values))
        for value in best.values:
            yield selection.namespace, best.key, value
        return
    existing = next((each for each in requirements if each.operator == "Exists"), None)
    yield selection.namespace, existing.key if existing else "", None


def _discard(index: dict[object, set[Selection]] | dict, key: object, selection: Selection) -> bool:  # type: ignore[type-arg]
    """Take a selection out of a bucket; whether the bucket is gone with it."""
    bucket: set[Selection] = index[key]
    bucket.discard(selection)
    if not bucket:
        del index[key]
    return not bucket

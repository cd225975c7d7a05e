"""Read the routers that a Node's annotations name: ``kube-router.io/peers``, or the older lists.

Pure. ``peers`` is a YAML list of mappings (kube-router's Go library takes keys in small letters;
here they may be written in any). To kube-router's keys come: ``passwordsecretref`` (``name`` and
``key`` of a Secret in the agent's namespace), ``holdtime``, ``multihop``, ``gtsm`` or
``ttlsecurity`` (true, or hops), ``gracefulrestart``; and in place of ``remoteip``: ``interface``
(unnumbered) or ``listenrange`` (dynamic neighbors). ``remoteasn`` may be internal or external, too.

Differences from kube-router: what is wrong with one router leaves out that one, not all of them;
an unknown key is told (and ignored, as there); the lists may have blank ports, and blanks around
items; YAML anchors work, merge keys (``<<``) do not; the BFD port is always 3784.
"""

import difflib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import yaml

from kube_router_py.cluster.node import NodeView
from kube_router_py.problem import Problem
from kube_router_py.routing.bfd import PORT as BFD_PORT
from kube_router_py.routing.bfd import port_reason, possible_bfd
from kube_router_py.routing.model import Bfd
from kube_router_py.routing.passwords import SecretRef, decode_password
from kube_router_py.routing.peer_spec import DEFAULT_PORT, PeerSpec, parse_remote_as
from kube_router_py.routing.texts import annotation_field, parse_boolean, shown
from kube_router_py.routing.values import (
    parse_cidr,
    parse_interface,
    parse_neighbor,
    parse_number,
    parse_seconds,
)

PEERS_ANNOTATION = "kube-router.io/peers"
_LIST = "kube-router.io/peer."
LIST_ANNOTATIONS = tuple(
    f"{_LIST}{name}" for name in ("ips", "asns", "ports", "passwords", "localips")
)

T = TypeVar("T")

# Bytes of one annotation, and of one value in it: what is longer is no description of routers.
_LONGEST = 1 << 16
_LONGEST_VALUE = 256
_MOST = 256
_LEFT_OUT = "this router is left out"
_EXAMPLE = "write each router like - {remoteip: 192.0.2.1, remoteasn: 65000}"
# How YAML writes that there is nothing.
_NOTHING = frozenset(("", "~", "null", "Null", "NULL"))
_WHICH = ("remoteip", "interface", "listenrange")
_KEYS = (
    *_WHICH,
    "remoteasn",
    "localip",
    "port",
    "password",
    "passwordsecretref",
    "holdtime",
    "multihop",
    "gtsm",
    "ttlsecurity",
    "gracefulrestart",
    "bfd",
)
_BFD_PARAMETERS = (
    "detection_multiplier",
    "required_min_rx_interval",
    "desired_min_tx_interval",
)
_BFD_KEYS = ("enabled", "port", *_BFD_PARAMETERS)
# What Secrets and their keys can be called, short of where dots may stand.
_SECRET_WORD = re.compile(r"[A-Za-z0-9._-]{1,253}")


def annotated_peers(view: NodeView) -> tuple[tuple[PeerSpec, ...], tuple[Problem, ...]]:
    """The routers that a Node names, and what is wrong with others."""
    text = view.annotation(PEERS_ANNOTATION)
    if text is not None:
        return _read_yaml(text, f"Node {view.name}")
    return _read_lists(tuple(map(view.annotation, LIST_ANNOTATIONS)), f"Node {view.name}")


# A pure function of texts that seldom change, while it is asked again with every other change.
@lru_cache(maxsize=4)
def _read_yaml(text: str, subject: str) -> tuple[tuple[PeerSpec, ...], tuple[Problem, ...]]:
    field = annotation_field(PEERS_ANNOTATION)
    items: Any = []
    reason = ""
    if len(text) > _LONGEST:
        reason = f"it is longer than {_LONGEST} characters; give fewer routers"
    else:
        try:
            # Everything as text: no number loses its zeros, nothing becomes a date.
            items = yaml.load(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
            reason = f"it is no YAML{where}; {_EXAMPLE}"
        except (yaml.YAMLError, ValueError, RecursionError):
            reason = f"it is no YAML; {_EXAMPLE}"
    if items is None or (isinstance(items, str) and items in _NOTHING):
        items = []
    if not isinstance(items, list):
        items, reason = [], f"it is no list; {_EXAMPLE}"
    elif len(items) > _MOST:
        reason = f"it has {len(items)} routers; the first {_MOST} count"
    problems = [Problem(subject, field, reason)] if reason else []
    specs: list[PeerSpec] = []
    for index, item in enumerate(items[:_MOST]):
        reader = _Reader(item, subject, f"{field}[{index}]", problems)
        spec = reader.peer(f"annotation {PEERS_ANNOTATION}[{index}]")
        if spec is not None:
            specs.append(spec)
    return tuple(specs), tuple(problems)


class _Reader:
    """One mapping, read key by key; all that is wrong with it is told, not the first thing only."""

    def __init__(self, item: Any, subject: str, field: str, problems: list[Problem]) -> None:
        self._subject, self._field, self._problems = subject, field, problems
        self._is_wrong = not isinstance(item, dict)
        self._values: dict[str, Any] = {}
        if self._is_wrong:
            self._tell("", f"it is no mapping, such as {{remoteip: 192.0.2.1}}; {_LEFT_OUT}")
            return
        for key, value in item.items():
            if not (isinstance(value, str) and value in _NOTHING):
                self._values[key.lower() if isinstance(key, str) else ""] = value

    def peer(self, description: str) -> PeerSpec | None:
        """The router that is described here, or None where something is wrong with it."""
        if self._is_wrong:
            return None
        self._unknown(_KEYS)
        named = [key for key in _WHICH if key in self._values]
        if len(named) != 1:
            found = "both " + " and ".join(named) if named else "no remoteip"
            self._refuse("", f"it has {found}; give one of {', '.join(_WHICH)}")
        bfd = self._bfd()
        ttl_security = self._take("gtsm", _ttl_security, 0)
        ttl_security = self._take("ttlsecurity", _ttl_security, ttl_security)
        if "remoteasn" not in self._values and named != ["interface"]:
            self._refuse(".remoteasn", "it is missing; give the AS number of the router")
        spec = PeerSpec(
            object=self._subject,
            field=self._field,
            description=description,
            remote_as=self._take("remoteasn", parse_remote_as, "external"),
            address=self._take("remoteip", parse_neighbor, None),
            interface=self._take("interface", parse_interface, ""),
            network=self._take("listenrange", parse_cidr, None),
            local_address=self._take("localip", parse_neighbor, None),
            port=self._take("port", _port, DEFAULT_PORT),
            password=self._password(),
            secret=self._secret(),
            hold_s=self._take("holdtime", _hold_time, None),
            multihop=self._take("multihop", _hops, None),
            ttl_security=ttl_security,
            bfd=bfd,
            graceful_restart=self._take("gracefulrestart", _boolean, None),
        )
        self._check_together(spec)
        return None if self._is_wrong else spec

    def _check_together(self, spec: PeerSpec) -> None:
        if spec.password and spec.secret:
            self._refuse(".passwordsecretref", "there is a password besides; leave out one of them")
        if spec.ttl_security and spec.multihop and spec.multihop > 1:
            self._refuse(".multihop", "it excludes gtsm; leave out one of them")
        if spec.interface:
            if spec.local_address is not None:
                self._refuse(".localip", "a router behind an interface has none; leave it out")
            if spec.multihop and spec.multihop > 1:
                self._refuse(".multihop", "behind an interface a router is near; leave it out")
            if spec.ttl_security > 1:
                self._refuse(".gtsm", "behind an interface a router is 1 hop away; write true")
        if spec.network is not None and "port" in self._values:
            self._refuse(".port", "routers of a range are not called; leave it out")

    def _bfd(self) -> Bfd | None:
        """BFD where it is enabled; what FRR cannot do is told, and the nearest that it can used."""
        item = self._values.get("bfd")
        if item is None:
            return None
        if not isinstance(item, dict):
            self._refuse(".bfd", "it is no mapping, such as {enabled: true}")
            return None
        reader = _Reader(item, self._subject, f"{self._field}.bfd", self._problems)
        reader._unknown(_BFD_KEYS)
        usual = Bfd()
        is_enabled = reader._take("enabled", _boolean, False)
        port = reader._take("port", _port, BFD_PORT)
        multiplier = reader._take(_BFD_PARAMETERS[0], _packets, usual.detection_multiplier)
        receive = reader._take(_BFD_PARAMETERS[1], _interval, usual.receive_interval_ms)
        transmit = reader._take(_BFD_PARAMETERS[2], _interval, usual.transmit_interval_ms)
        self._is_wrong |= reader._is_wrong
        if not is_enabled:
            return None
        bfd, changed = possible_bfd(multiplier, receive, transmit, _BFD_PARAMETERS)
        if reason := port_reason(port):
            changed.append(("port", reason))
        for name, reason in changed:
            reader._tell(f".{name}", reason)
        return bfd

    def _password(self) -> str:
        try:
            return decode_password(self._text("password") or "")
        except ValueError as error:
            self._refuse(".password", f"it {error}")
            return ""

    def _secret(self) -> SecretRef | None:
        item = self._values.get("passwordsecretref")
        if item is None:
            return None
        if not isinstance(item, dict):
            self._refuse(".passwordsecretref", "it is no mapping; write {name: SECRET, key: KEY}")
            return None
        field = f"{self._field}.passwordsecretref"
        reader = _Reader(item, self._subject, field, self._problems)
        reader._unknown(("name", "key"))
        name, key = reader._take("name", _secret_word, ""), reader._take("key", _secret_word, "")
        self._is_wrong |= reader._is_wrong
        for part, value in (("name", name), ("key", key)):
            if not value and part not in reader._values:
                self._refuse(f".passwordsecretref.{part}", "it is missing; write it there")
        return SecretRef(name, key)

    def _unknown(self, known: tuple[str, ...]) -> None:
        unknown = sorted(self._values.keys() - set(known))
        if unknown:
            key = unknown[0]
            more = f" (and {len(unknown) - 1} more)" if unknown[1:] else ""
            near = difflib.get_close_matches(key[:40], known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            self._tell("", f"the key {shown(key)}{more} is unknown and ignored; {remedy}")

    def _take(self, key: str, parse: Callable[[str], T], default: T) -> T:
        text = self._text(key)
        if text is None:
            return default
        try:
            return parse(text)
        except ValueError as error:
            self._refuse(f".{key}", f"{shown(text)} {error}")
            return default

    def _text(self, key: str) -> str | None:
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self._refuse(f".{key}", "it is a list or a mapping; write one value")
            return None
        if len(value) > _LONGEST_VALUE:
            self._refuse(f".{key}", f"it is longer than {_LONGEST_VALUE} characters; shorten it")
            return None
        return value.strip()

    def _refuse(self, place: str, reason: str) -> None:
        self._is_wrong = True
        self._tell(place, f"{reason}; {_LEFT_OUT}")

    def _tell(self, place: str, reason: str) -> None:
        self._problems.append(Problem(self._subject, f"{self._field}{place}", reason))


# --- values -------------------------------------------------------------------------------------


def _boolean(text: str) -> bool:
    value = parse_boolean(text)
    if value is None:
        raise ValueError("is neither true nor false; write one of them")
    return value


def _port(text: str) -> int:
    return parse_number(text, 1, 65535, "a port")


def _hops(text: str) -> int:
    return parse_number(text, 0, 255, "a number of hops")


def _hold_time(text: str) -> int:
    return parse_seconds(text, 3, 65535)


def _packets(text: str) -> int:
    return parse_number(text, 1, 255)


def _interval(text: str) -> int:
    return parse_number(text, 1, 2**32 - 1, "a number of milliseconds")


def _ttl_security(text: str) -> int:
    """Hops that the router may be away: as many as are given, 1 for true, 0 for false."""
    if text.lower() in ("true", "false"):
        return int(text.lower() == "true")
    return parse_number(text, 1, 254, "a number of hops, true or false")


def _secret_word(text: str) -> str:
    if not _SECRET_WORD.fullmatch(text):
        raise ValueError("is nothing that Secrets or their keys are called; correct it")
    return text


# --- the older lists ----------------------------------------------------------------------------


def _read_lists(
    texts: tuple[str | None, ...], subject: str
) -> tuple[tuple[PeerSpec, ...], tuple[Problem, ...]]:
    """Routers of parallel lists. Lists of unequal lengths name none: who belongs to whom?"""
    problems: list[Problem] = []
    columns: list[list[str]] = []
    for name, text in zip(LIST_ANNOTATIONS, texts, strict=True):
        if text is not None and len(text) > _LONGEST:
            reason = f"it is longer than {_LONGEST} characters; give fewer routers"
            problems.append(Problem(subject, annotation_field(name), reason))
            text = None
        items = [item.strip() for item in text.split(",")] if text and text.strip() else []
        columns.append(items[: _MOST + 1])
    count = max(map(len, columns[:2]))
    if count > _MOST:
        reason = f"it has more than {_MOST} routers; give fewer"
        problems.append(Problem(subject, annotation_field(LIST_ANNOTATIONS[0]), reason))
    for index, (name, items) in enumerate(zip(LIST_ANNOTATIONS, columns, strict=True)):
        if len(items) != count and (items or index < 2):
            reason = (
                f"it has {len(items)} items where the other lists have {count}; give one for each "
                "router, in the same order"
            )
            problems.append(Problem(subject, annotation_field(name), reason))
    if problems:
        return (), tuple(problems)
    specs: list[PeerSpec] = []
    for index in range(count):
        row = [items[index] if items else "" for items in columns]
        spec = _row(row, index, subject, problems)
        if spec is not None:
            specs.append(spec)
    return tuple(specs), tuple(problems)


def _row(row: list[str], index: int, subject: str, problems: list[Problem]) -> PeerSpec | None:
    wrong = len(problems)

    def take(column: int, parse: Callable[[str], T], default: T, *, is_hidden: bool = False) -> T:
        text = row[column]
        if not text and column > 1:
            return default
        try:
            return parse(text)
        except ValueError as error:
            field = f"{annotation_field(LIST_ANNOTATIONS[column])}[{index}]"
            value = "it" if is_hidden else shown(text)
            problems.append(Problem(subject, field, f"{value} {error}; {_LEFT_OUT}"))
            return default

    spec = PeerSpec(
        object=subject,
        field=f"{annotation_field(LIST_ANNOTATIONS[0])}[{index}]",
        description=f"annotation {LIST_ANNOTATIONS[0]}[{index}]",
        address=take(0, parse_neighbor, None),
        remote_as=take(1, parse_remote_as, "external"),
        port=take(2, _port, DEFAULT_PORT),
        password=take(3, decode_password, "", is_hidden=True),
        local_address=take(4, parse_neighbor, None),
    )
    return spec if len(problems) == wrong else None

"""FRR brought to a wanted configuration: started, changed by deltas, compared, repaired.

What was applied last is remembered, so that one change costs its own commands and nothing is read.
When nothing can be trusted (at first, after a restart, a refusal or an error, and in full turns)
the daemons are asked what they run, and what differs is put right.
"""

import logging
from collections.abc import Callable

from msgspec import Struct

from kube_router_py.errors import KernelError, PreflightError
from kube_router_py.kernel.frr_vty import masked
from kube_router_py.kernel.ports_frr import Boot, CommandResult, DaemonsDownError, Frr, Opened
from kube_router_py.problem import Problem
from kube_router_py.routing.frr_delta import Batch, needs_restart, plan
from kube_router_py.routing.frr_sections import DAEMONS, FrrConfig, parse_running

_log = logging.getLogger(__name__)

_TOLD = 5


class Synced(Struct, frozen=True):
    """What came of it. Without ``problems`` FRR is as wanted; else try again, in ``wake_after_s``
    at the latest where that is known."""

    problems: tuple[Problem, ...] = ()
    wake_after_s: float | None = None


class FrrSync:
    """One set of daemons. ``drift`` counts commands that put right what others had changed,
    ``starts`` how often the daemons were started; ``on_taken`` is told each command that a daemon
    took."""

    def __init__(
        self, frr: Frr, node_name: str, on_taken: Callable[[str], None] = lambda command: None
    ) -> None:
        self._frr = frr
        self._on_taken = on_taken
        self._node_name = node_name
        self._applied: FrrConfig | None = None
        self._wanted: FrrConfig | None = None
        # Whose file bfdd runs with, trusted or not.
        self._with_bfd: FrrConfig | None = None
        self.drift = self.starts = 0

    def sync(self, wanted: FrrConfig, *, full: bool) -> Synced:
        """Make the daemons run ``wanted``; ``full``: ask them first what they run.

        What goes wrong is told, never raised; what was reached is then looked up the next time.
        """
        if full:
            self._applied = None
        was_reached = self._wanted == wanted
        self._wanted = None
        try:
            opened = self._open(wanted)
            refused = self._change(wanted, is_repair=was_reached and opened is Opened.KEPT)
        except DaemonsDownError as error:
            return self._failed(error, error.wait_s)
        except (KernelError, PreflightError) as error:
            return self._failed(error)
        if refused:
            return Synced(refused)
        self._wanted = wanted
        return Synced()

    def _open(self, wanted: FrrConfig) -> Opened:
        """See to it that the daemons run and that it is known with what."""
        if wanted.has_bfd:
            self._with_bfd = wanted
        applied = self._applied
        # bfdd stays until no neighbor refers to it.
        opened = self._frr.open(_boot(wanted, self._with_bfd))
        if opened is not Opened.KEPT:
            applied = None
        if applied is None:
            applied = self._read(wanted)
        if needs_restart(applied, wanted):
            _log.info(
                "FRR is restarted for its identity asn=%s router_id=%s before_asn=%s before_id=%s",
                *(wanted.asn, wanted.router_id, applied.asn, applied.router_id),
            )
            self._frr.restart(_boot(wanted))
            opened, applied = Opened.STARTED, self._read(wanted)
            if needs_restart(applied, wanted):
                raise KernelError(
                    f"bgpd started as AS {applied.asn}, router id {applied.router_id} in spite of "
                    f"its file; see its log"
                )
        self._applied = applied
        if opened is Opened.STARTED:
            self.starts += 1
            for line in wanted.text("bgpd").splitlines():  # they took these from their files
                self._on_taken(line.strip())
        return opened

    def _change(self, wanted: FrrConfig, *, is_repair: bool) -> tuple[Problem, ...]:
        """Send what differs; returns what the daemons do not take."""
        applied = self._applied
        assert applied is not None
        batches = plan(applied, wanted)
        # Until all is known to have been taken nothing is.
        self._applied = None
        refused = self._send(batches)
        if is_repair and batches:
            self.drift += sum(len(each.commands) for each in batches)
            _log.warning("FRR had been changed by somebody else lines=%r", _shown(batches))
        if refused:
            # Some refusals are of no consequence: what counts is what the daemons show.
            left = plan(self._read(wanted), wanted)
            if left:
                return tuple(self._problem(each) for each in refused[:_TOLD])
        if not wanted.has_bfd and self._with_bfd is not None:
            self._frr.open(_boot(wanted))
            self._with_bfd = None
        self._applied = wanted
        return ()

    def _send(self, batches: tuple[Batch, ...]) -> list[CommandResult]:
        refused: list[CommandResult] = []
        for batch in batches:
            results = self._frr.apply({batch.daemon: batch.commands})
            for each in results[batch.daemon]:
                if each.is_failed:
                    refused.append(each)
                else:
                    self._on_taken(each.command)
        return refused

    def _read(self, wanted: FrrConfig) -> FrrConfig:
        # Daemons that listen elsewhere than wanted have been started anew.
        return parse_running(self._frr.running(), wanted.listen, wanted.port)

    def _failed(self, error: Exception, wait_s: float | None = None) -> Synced:
        self._applied = None
        problem = Problem(f"Node {self._node_name}", "", f"BGP: {error}")
        return Synced((problem,), wait_s)

    def _problem(self, refused: CommandResult) -> Problem:
        reason = f"FRR refuses {masked(refused.command)!r}: {refused.complaint}"
        return Problem(f"Node {self._node_name}", "", reason)


def _boot(wanted: FrrConfig, with_bfd_of: FrrConfig | None = None) -> Boot:
    files = {each: wanted.text(each) for each in DAEMONS if each != "bfdd" or wanted.has_bfd}
    if with_bfd_of is not None and not wanted.has_bfd:
        files["bfdd"] = with_bfd_of.text("bfdd")
    return Boot(files, wanted.listen, wanted.port)


def _shown(batches: tuple[Batch, ...]) -> list[str]:
    lines = [masked(line) for batch in batches for line in batch.commands]
    return [*lines[:_TOLD], *(["..."] if len(lines) > _TOLD else [])]

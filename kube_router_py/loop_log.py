"""What a loop writes into the log, in words."""

import logging
from collections.abc import Hashable, Iterable, Sequence

from kube_router_py.errors import KubeRouterError
from kube_router_py.problem import Problem

_log = logging.getLogger("kube_router_py.loop")

_SHOWN_KEYS = 10
# Of one turn. Whoever may create Services can make thousands that are wrong.
_SHOWN_PROBLEMS = 20


def tell_problems(loop: str, before: Sequence[Problem], now: Sequence[Problem]) -> None:
    """One line for each problem that came or went; of very many only the first."""
    known = frozenset(before)
    news = [problem for problem in now if problem not in known]
    for problem in news[:_SHOWN_PROBLEMS]:
        _log.warning("problem loop=%s object=%r field=%r reason=%r", loop, *_parts(problem))
    if len(news) > _SHOWN_PROBLEMS:
        more = len(news) - _SHOWN_PROBLEMS
        _log.warning("more problems, /problems shows all loop=%s count=%d", loop, more)
    solved = sorted(known.difference(now))
    for problem in solved[:_SHOWN_PROBLEMS]:
        _log.info("problem solved loop=%s object=%r field=%r reason=%r", loop, *_parts(problem))
    if len(solved) > _SHOWN_PROBLEMS:
        _log.info("more problems solved loop=%s count=%d", loop, len(solved) - _SHOWN_PROBLEMS)


def _parts(problem: Problem) -> tuple[str, str, str]:
    return problem.object, problem.field, problem.reason


def shown(keys: Iterable[Hashable]) -> str:
    """Keys in one line, the first of many."""
    texts = sorted(map(str, keys))
    more = f" and {len(texts) - _SHOWN_KEYS} more" if len(texts) > _SHOWN_KEYS else ""
    return ", ".join(texts[:_SHOWN_KEYS]) + more


def told(error: BaseException) -> str:
    """Errors raised on purpose say all there is to say; others need their type, too."""
    if isinstance(error, KubeRouterError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def log_escaped(
    name: str, error: Exception, keys: frozenset[Hashable], what: str = "failed and is restarted"
) -> None:
    """Log an exception with the keys in hand, and, unless it was raised on purpose, its place."""
    on_purpose = isinstance(error, KubeRouterError)
    _log.error(
        "a loop failed loop=%s what=%r count=%d keys=%r reason=%r",
        name,
        what,
        len(keys),
        shown(keys),
        told(error),
        exc_info=None if on_purpose else error,
    )

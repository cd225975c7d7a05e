"""What the commands of this node may ask its agent (``observe.agent_socket``)."""

from kube_router_py.agent_parts import AgentParts
from kube_router_py.flow_answers import FlowAnswers
from kube_router_py.observe.agent_socket import Question, Stream
from kube_router_py.observe.health import Health
from kube_router_py.options import Options, given_text


def questions(health: Health, options: Options, flows: FlowAnswers) -> dict[str, Question]:
    """By name. All are asked in threads of the socket, several at once."""
    return {
        "status": lambda asked: health.status(),
        # As texts, secrets hidden; what is not there has its default.
        "options": lambda asked: {"flags": given_text(options)},
        "explain": flows.explain,
    }


def streams(parts: AgentParts) -> dict[str, Stream]:
    """Questions whose answer goes on, by name."""
    drops = parts.drops
    return {"drops": drops.stream} if drops is not None else {}

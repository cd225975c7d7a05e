"""The exception tree, named by what the reader has to do.

    KubeRouterError
    |-- ConfigurationError   correct the flags, the environment or the file named (exit code 2)
    |-- PreflightError       give the node what it lacks: a module, a capability, a program
    |-- ApiError             look at the API server or the credentials; state is kept meanwhile
    `-- KernelError          the kernel refused; the operation is named and retried
        `-- StateUnknownError  replies were lost: read the kernel back before writing again

Something wrong with a single Kubernetes object is no exception but a ``problem.Problem``.
"""


class KubeRouterError(Exception):
    """Base of every error the agent raises on purpose."""


class ConfigurationError(KubeRouterError):
    """The operator's configuration is wrong; carries one message per mistake."""

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class PreflightError(KubeRouterError):
    """The node lacks something the agent needs; the message says the remedy."""


class ApiError(KubeRouterError):
    """The API server could not be asked, or refused; ``status`` is the HTTP status or 0."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class KernelError(KubeRouterError):
    """The kernel refused an operation; ``errno`` as in errno(3), 0 when there is none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class StateUnknownError(KernelError):
    """Replies were lost (ENOBUFS, timeout): what the kernel holds must be read back."""

"""The file that a missing CNI configuration is made from: an entry of a ConfigMap, mounted."""

from pathlib import Path

from kube_router_py.errors import KernelError


def read_template(path: str) -> str | None:
    """Its text; None where no template is named, or there is no such file. Raises KernelError."""
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as error:
        raise KernelError(f"cannot read {path}: {error}") from error

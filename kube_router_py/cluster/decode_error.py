"""What msgspec says of a value that does not fit, in the words of a Problem. Pure."""


def explain(error: Exception, prefix: str = "") -> tuple[str, str]:
    """Reason and field of "Expected `int`, got `str` - at `$.spec.port`"; ``prefix`` is where the
    value stood that was decoded, ``""`` for a whole object."""
    what, found, where = str(error).partition(" - at `$")
    field = where.rstrip("`") if found else ""
    if not prefix:
        field = field.lstrip(".")
    return f"cannot be decoded: {what}", prefix + field

"""Colour, for terminals only: what is piped or asked to be plain (NO_COLOR) stays plain."""

import os
from collections.abc import Mapping
from typing import IO


class Painter:
    """Paints words for one stream. ``NO_COLOR`` with any value (https://no-color.org) and a
    terminal that calls itself ``dumb`` get none."""

    def __init__(self, stream: IO[str], environ: Mapping[str, str] = os.environ) -> None:
        plain = environ.get("NO_COLOR") or environ.get("TERM") == "dumb"
        self._is_on = not plain and stream.isatty()

    def red(self, text: str) -> str:
        return self._paint("31", text)

    def green(self, text: str) -> str:
        return self._paint("32", text)

    def yellow(self, text: str) -> str:
        return self._paint("33", text)

    def bold(self, text: str) -> str:
        return self._paint("1", text)

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._is_on and text else text

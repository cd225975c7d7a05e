"""The body of the lab's server process: a ``Lab`` from start to the end of its life line."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kube_router_py.errors import KubeRouterError
from kube_router_py.lab.cluster import Lab, LabOptions

Report = Callable[[dict[str, Any]], None]
_log = logging.getLogger(__name__)


def serve(options: LabOptions, directory: Path, report: Report, life_line: int) -> None:
    """Run a lab until ``life_line`` closes: the body of the server process. Never raises."""
    began = time.monotonic()
    logging.basicConfig(
        filename=directory / "logs" / "lab.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # The lab speaks through its log and the pipe; the streams are COMMAND's.
    with open(os.devnull, "rb") as null, (directory / "logs" / "lab.log").open("ab") as log:
        os.dup2(null.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def progress(line: str) -> None:
        _log.info("%s", line)
        report({"progress": f"{time.monotonic() - began:6.1f} s  {line}"})

    asyncio.run(_serve(options, directory, report, progress, life_line))


async def _serve(
    options: LabOptions,
    directory: Path,
    report: Report,
    progress: Callable[[str], None],
    life_line: int,
) -> None:
    loop = asyncio.get_running_loop()
    abandoned = asyncio.Event()

    def abandon() -> None:
        loop.remove_reader(life_line)
        abandoned.set()

    loop.add_reader(life_line, abandon)
    lab: Lab | None = None
    ending = asyncio.create_task(abandoned.wait())
    try:
        lab = Lab(options, directory, progress)
        starting = asyncio.create_task(lab.start())
        await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            report({"ready": lab.environment()})
            await ending
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    except KubeRouterError as error:
        report({"failed": str(error)})
    except Exception as error:  # noqa: BLE001 - whatever it was, front must be told instead of left waiting
        _log.exception("the lab failed")
        report({"failed": f"{type(error).__name__}: {error}; see lab.log"})
    finally:
        if lab is not None:
            await lab.close()

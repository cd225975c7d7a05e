"""Waiting for child processes from the event loop, without threads and without SIGCHLD."""

import asyncio
import os
import signal
import subprocess


async def _readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    event = asyncio.Event()
    loop.add_reader(descriptor, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(descriptor)


async def wait_exit(process: "subprocess.Popen[bytes]") -> int:
    """Wait for the end of a child; returns its exit code (negative: the signal's number)."""
    code = process.poll()
    if code is not None:
        return code
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    try:
        await _readable(loop, descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


async def read_line(process: "subprocess.Popen[bytes]") -> bytes:
    """The first line on the child's standard output, or what there was before it closed."""
    assert process.stdout is not None
    loop = asyncio.get_running_loop()
    descriptor = process.stdout.fileno()
    os.set_blocking(descriptor, False)
    data = b""
    while not data.endswith(b"\n"):
        await _readable(loop, descriptor)
        more = os.read(descriptor, 4096)
        if not more:
            break
        data += more
    return data


def send(process: "subprocess.Popen[bytes] | None", number: signal.Signals) -> None:
    """Signal a child that may have ended already."""
    if process is not None and process.poll() is None:
        process.send_signal(number)


async def end(process: "subprocess.Popen[bytes]", grace_s: float) -> int:
    """SIGTERM, then SIGKILL after ``grace_s``; returns the exit code."""
    send(process, signal.SIGTERM)
    try:
        return await asyncio.wait_for(wait_exit(process), grace_s)
    except TimeoutError:
        send(process, signal.SIGKILL)
        return await wait_exit(process)

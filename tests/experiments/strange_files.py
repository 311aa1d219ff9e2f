"""What may stand where a file is expected, and would be waited for or read without end."""

import os
import socket
from pathlib import Path


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # Names of sockets must be short.
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


MAKE = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: path.symlink_to("gone"),
    "folder": Path.mkdir,
    "socket": _socket,
}
SAID = {
    "pipe": "it is a pipe, not a regular file",
    "device": "it is a device, not a regular file",
    "nothing": "it is a link to gone, which is not there",
    "folder": "it is a folder (directory), not a regular file",
    "socket": "it is a socket, not a regular file",
}


def put(kind: str, path: Path) -> str:
    """Puts one of them in place of a file; returns what is to be said of it."""
    path.unlink(missing_ok=True)
    MAKE[kind](path)
    return SAID[kind]

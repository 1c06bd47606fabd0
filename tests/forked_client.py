"""Asks the process that forks for one of its forks. As a program: be `python ARGUMENTS`, at the cost of this file.

`forked_client.py ADDRESS ARGUMENTS…`, for shell scripts; it imports little, for it is started anew each time.
"""

import json
import os
import socket
import sys


def ask(address: str, request: dict[str, object], streams: list[int]) -> socket.socket:
    """Ask for a fork; on the socket come lines with its pid and, at its end, with its exit code. Closed, it kills it."""
    told = socket.socket(socket.AF_UNIX)
    told.connect(address)
    socket.send_fds(told, [b"\n"], streams)
    told.sendall(json.dumps(request).encode() + b"\n")
    return told


def main() -> None:
    address, *arguments = sys.argv[1:]
    request = {
        "arguments": arguments,
        "directory": os.getcwd(),  # noqa: PTH109 - pathlib takes as long as all the rest
        "environment": dict(os.environ),
        "new_session": False,
    }
    with ask(address, request, [0, 1, 2]) as told:
        _pid, code = told.makefile()
    os._exit(int(code) % 256)


if __name__ == "__main__":
    main()

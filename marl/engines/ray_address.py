"""Whether a Ray cluster answers at an address, found out fast and said in one line."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

from marl.types import UserError

CONNECT_SECONDS = 5.0
"""For the TCP connection."""

JOIN_SECONDS = 60.0
"""For joining, on a busy machine."""

JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
except Exception as error:
    sys.exit("failed: " + " ".join(f"{type(error).__name__}: {error}".split()))
"""

TOKEN = "wants its token: export RAY_AUTH_MODE=token, with the token in ~/.ray/auth_token or in RAY_AUTH_TOKEN"

STRANGER = "does not answer as the head node of a Ray cluster does"

SIGNS = {
    "InvalidAuthToken": TOKEN,
    "AuthenticationError": TOKEN,
    "Failed to connect to GCS": STRANGER,
    "Failed to get cluster ID": STRANGER,
}
"""What Ray prints long before it gives up, and what it means."""


def check_address(address: str) -> None:
    """Join the cluster in another process first: where it fails, Ray tries for minutes and prints line after line.

    Args:
        address: HOST:PORT.

    Raises:
        UserError: it is not of that form, nobody listens there, it is no Ray cluster of the same version, it refuses
            us, or this machine is none of its nodes.
    """
    if address.startswith("ray://"):
        raise UserError(
            f"Ray address {address}: a Ray client keeps no files where the run does; make this machine a node "
            "(ray start --address=HOST:PORT) and give HOST:PORT, with the port of ray start"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"Ray address: expected HOST:PORT, such as 10.0.0.1:6379, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"nobody answers at the Ray address {address} ({error}); is it HOST:PORT of ray start?"
        ) from None
    command = [sys.executable, "-c", JOIN, address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        timer = threading.Timer(JOIN_SECONDS, process.kill)
        timer.start()
        try:
            for line in process.stderr:
                meant = next((meant for sign, meant in SIGNS.items() if sign in line), None)
                if meant:
                    raise UserError(f"the Ray address {address} {meant}")
                if line.startswith("failed: "):
                    raise UserError(f"the Ray cluster at {address} does not take us ({line[8:].strip()})")
            process.wait()
        finally:
            timer.cancel()
            process.kill()
    if process.returncode:
        raise UserError(f"the Ray address {address} gave no answer in {JOIN_SECONDS:.0f} seconds")

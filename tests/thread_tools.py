"""Work that several threads do at once, as entangled as Python lets them."""

import sys
import threading


def in_threads(work, count):
    """Call ``work()`` in ``count`` threads that take turns after every few instructions, and wait for all."""
    threads, interval = [threading.Thread(target=work) for _ in range(count)], sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)

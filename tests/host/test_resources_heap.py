"""What large messages took goes back to the system, from the heaps of all threads."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

# A thread that frees a block at a heap's end, after a larger one was freed: as libzmq's does.
PROGRAM = """
import ctypes, sys, threading
from picoedge.host import resources

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def take(nbytes):
    block = libc.malloc(nbytes)
    ctypes.memset(block, 1, nbytes)
    libc.free(block)

done, goes_on = threading.Event(), threading.Event()

def messages():
    for nbytes in (4 << 20, 3 << 20, 2 << 20):
        take(nbytes)
    done.set()
    goes_on.wait()

if sys.argv[1] == "returned":
    resources.return_large_blocks()
before = anonymous()
threading.Thread(target=messages).start()
done.wait()
resources.give_back()
print(anonymous() - before)
goes_on.set()
"""


def kept_bytes(how: str) -> int:
    """What a process keeps of blocks of some MB that its second thread has freed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="malloc is not glibc's")
def test_freed_blocks_of_another_thread_are_given_back() -> None:
    assert kept_bytes("kept") > 1 << 20  # why it is needed
    assert kept_bytes("returned") < 512 << 10

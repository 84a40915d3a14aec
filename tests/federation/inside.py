"""How does a program start in another network? ``python -m ... NAMESPACE MODULE ARGUMENTS``."""

import ctypes
import os
import sys

_CLONE_NEWNET = 0x40000000


def main() -> None:
    """Enter the namespace that ``ip netns add`` made, and become the program."""
    name, *arguments = sys.argv[1:]
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), f"can't enter the network namespace {name}")
    os.execv(sys.executable, [sys.executable, "-m", *arguments])


if __name__ == "__main__":
    main()

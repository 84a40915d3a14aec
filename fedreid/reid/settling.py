"""How is torch set up in a process that learns? For the same bits every time, and for speed."""

import os

import torch

from fedreid.memory import keep_freed


def settle_torch() -> None:
    """Let torch choose only algorithms that repeat their bits, and keep the memory of each step.

    The number of threads is the job's business.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for that
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, and slow
    keep_freed()

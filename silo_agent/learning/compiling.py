"""How is a backbone compiled for training, where the operator wants that? By torch.compile.

It costs a minute or more in each training, needs a C++ compiler (and Triton for a GPU), and pays
only where steps are many: measure with ``fedreid-bench training --compiled``.

Letters: N images, D feature width, P width before the neck.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from fedreid.errors import UsageError
from fedreid.reid.backbone import ReIDBackbone

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""images_NCHW to features_ND and pooled_NP."""


def compiled_forward(backbone: ReIDBackbone) -> Forward:
    """``backbone.with_pooled``, compiled at its first call.

    Each batch size gets code of its own, so that the bits of a step do not depend on which sizes
    came before: a training that goes on from a checkpoint compiles anew.
    """
    torch.compiler.reset()  # of former rounds; with eight it would stop compiling without a word
    compiled: Forward = torch.compile(backbone.with_pooled, dynamic=False)

    def forward(images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The same.

        Raises:
            UsageError: it can't be compiled here.
        """
        try:
            return compiled(images_NCHW)
        except TorchDynamoException as error:
            raise UsageError(
                "The network can't be compiled for training",
                why=str(error).strip().splitlines()[0],
                next_step="Install a C++ compiler (g++) and Python's headers, or set compiled = "
                "false in agent.toml.",
            ) from error

    return forward

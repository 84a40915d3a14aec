"""Which torch do these tests see? One thread, as plans that want equal bits ask for."""

import torch

torch.set_num_threads(1)

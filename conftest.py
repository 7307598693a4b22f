"""One torch thread: the tests run small tensors, for which more threads cost more than they give."""

import torch

torch.set_num_threads(1)

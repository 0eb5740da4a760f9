"""What is drawn before each step: preferences, cost weight and the noise of the Gumbel softmax."""

import numpy as np
import torch
from torch import Tensor, nn


class Draws(nn.Module):
    """r ~ Dir(a, ..., a), c ~ U(0, 1), and standard Gumbel noise for every edge.

    The numbers of a step depend on the seed and on how many were drawn before, which is in the
    state dict: a training that goes on from a checkpoint draws what it would have drawn.

    Args:
        tasks: Number of tasks T.
        blocks: Number of blocks L.
        concentration: a.
        seed: Seed of all draws.

    Attributes:
        preference: (T,) preferences of this step, which sum to 1; equal before the first.
        cost: (), c of this step; 0.5 before the first.
        noise: (L, T, T) noise of this step; 0 before the first.
    """

    preference: Tensor
    cost: Tensor
    noise: Tensor
    count: Tensor

    def __init__(self, *, tasks: int, blocks: int, concentration: float, seed: int) -> None:
        super().__init__()
        self.concentration, self.seed = concentration, seed
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        preference = torch.full((tasks,), 1 / tasks)
        self.register_buffer("preference", preference, persistent=False)
        self.register_buffer("cost", torch.full((), 0.5), persistent=False)
        self.register_buffer("noise", torch.zeros(blocks, tasks, tasks), persistent=False)

    def draw(self) -> None:
        """Draw the values of the next step."""
        generator = np.random.default_rng([self.seed % 2**64, int(self.count)])
        tasks = len(self.preference)
        preference = generator.dirichlet(np.full(tasks, self.concentration))
        self.preference.copy_(torch.from_numpy(preference))
        self.cost.fill_(generator.random())
        self.noise.copy_(torch.from_numpy(generator.gumbel(size=tuple(self.noise.shape))))
        self.count += 1

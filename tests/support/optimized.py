"""An optimizer and its schedule without a trainer."""

from functools import partial

import torch

from lightning_score.training.optimization import Optimization


class Run:
    """A weight, its optimizer and the schedule; the learning rates of its steps."""

    def __init__(self, make_optimizer, make_schedule=None):
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3))
        self.optimization = Optimization(make_optimizer, make_schedule)
        made = self.optimization.configure(iter([self.weight]))
        self.optimizer = made["optimizer"] if make_schedule else made
        self.schedule = made["lr_scheduler"]["scheduler"] if make_schedule else None
        self.rates = []

    def steps(self, n):
        for _ in range(n):
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            self.weight.grad = torch.full((3,), float(len(self.rates)))
            self.optimizer.step()
            if self.schedule is not None:
                self.schedule.step()
        return self

    def goes_on_from(self, other):
        """Restores the weight and the states of another run, as Lightning does."""
        self.weight.data.copy_(other.weight)
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        if self.schedule is not None:
            self.schedule.load_state_dict(other.schedule.state_dict())
        self.optimization.keep_settings()
        self.rates = list(other.rates)
        return self


def adam(**settings):
    return partial(torch.optim.Adam, **settings)

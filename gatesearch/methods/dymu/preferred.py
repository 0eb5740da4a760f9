"""Losses weighted by preferences: ω_t T r_t, which is ω_t where all preferences are equal."""

from collections.abc import Sequence
from dataclasses import replace

from gatesearch.methods.dymu.supernet import DymuNet
from gatesearch.training.weightings import Basis, Entry, Weighting
from gatesearch.training.weightings.weighting import Losses

_PAPER, _YEAR = "Raychaudhuri et al., CVPR", 2022


class DrawnPreference(Weighting):
    """Σ_t ω_t T r_t L_t with the preferences r that the supernet has drawn for the step."""

    def before_step(self, *, losses: Losses, held_out: Losses) -> None:
        """Take the preferences of the step."""
        supernet = self.training_view.model
        assert isinstance(supernet, DymuNet)
        preference = supernet.draws.preference.to(self.omega)
        self.set_weights(self.omega * len(self.tasks) * preference, of=None)


DRAWN_PREFERENCE = Entry(DrawnPreference, _PAPER, _YEAR, "the preferences drawn for each step")


def fixed_preference(preference: Sequence[float]) -> Entry:
    """Describe Σ_t ω_t T r_t L_t with the same preferences in every step.

    Args:
        preference: (T,) r, which sums to 1.
    """

    def build(basis: Basis) -> Weighting:
        omega = {
            task: weight * len(preference) * r
            for (task, weight), r in zip(basis.omega.items(), preference, strict=True)
        }
        return Weighting(replace(basis, omega=omega))

    return Entry(build, _PAPER, _YEAR, "the preferences of one network")

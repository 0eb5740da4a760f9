"""Networks of a trial's cost that share in other ways, to tell whether its own way matters."""

from gatesearch.methods.controls.method import CONTROL, KINDS, drawn_kinds, kinds_of

__all__ = ["CONTROL", "KINDS", "drawn_kinds", "kinds_of"]

"""DYMU: one supernet whose tree of sharing follows preferences of tasks and a cost weight."""

"""LOMT: group-sparse single-task networks say at which layer each decoder reads."""

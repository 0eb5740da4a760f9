"""ECMT: one slimmable network, out of which a network for any budget and preference is cut."""

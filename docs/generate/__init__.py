"""The pages of reference, generated from the code when the site is built (`docs/hooks.py`)."""

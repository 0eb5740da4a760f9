"""What to try next: the run of a study, its searches, and what of them is shown.

| file | what |
|---|---|
| `run.py` | the run: store and data opened, baselines, searches, then the test part |
| `setup.py` | everything that can be refused before a store is made; budgets, latency |
| `search.py` | trials drawn, trained, told; nothing twice |
| `plans.py` | one plan per tuned method and per search for weights of losses |
| `space.py` | what Optuna draws, and the sampler |
| `one_shot.py` | configurations tried on a supernet without training, networks chosen |
| `reuse.py` | baselines of another store |
| `predictions.py` | predictions on a few test frames, for the report |
"""

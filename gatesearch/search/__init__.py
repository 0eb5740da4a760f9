"""Run a study: train its baselines, search, and measure the networks that a report shows.

| file | contents |
|---|---|
| `run.py` | the run: opens store and data, trains baselines, searches, measures on the test part |
| `setup.py` | checks everything that can be refused before a store is made; budgets, latency |
| `search.py` | draws trials, has them trained, keeps their results; does nothing twice |
| `plans.py` | one plan per tuned method and per search for weights of losses |
| `space.py` | draws parameters with Optuna; the sampler |
| `one_shot.py` | tries configurations on a supernet without training, and chooses networks |
| `reuse.py` | takes over baselines of another store |
| `predictions.py` | predictions on a few test frames, for the report |
"""

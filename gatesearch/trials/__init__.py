"""Train one network, of any method, from its specification to its result.

| file | contents |
|---|---|
| `context.py` | opens a study's data and chooses the runtime |
| `trial.py` | `train_network`: trains, measures and keeps one network |
| `phase_training.py` | trains a network through its phases, from the start or a checkpoint |
| `early_stopping.py` | stops trials that are worse than earlier ones |
| `kept_networks.py` | writes, copies and reads trained networks in their folders |
| `costs.py` | counts costs of a study's methods before any training |
"""

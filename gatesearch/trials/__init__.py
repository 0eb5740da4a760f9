"""One network from specification to result, whatever its method.

| file | what |
|---|---|
| `context.py` | opens a study's data and chooses the runtime |
| `trial.py` | `train_network`: trains, measures and keeps one network |
| `phase_training.py` | runs a method's phases, from the first or from a checkpoint |
| `early_stopping.py` | stops trials that lag behind earlier ones |
| `kept_networks.py` | networks in their folders: written, copied, read again |
| `costs.py` | costs of a study's methods before any training |
"""

"""What is kept of a study: everything that outlives a run. Needs no torch.

| file | what |
|---|---|
| `store.py` | definition, baselines, trials, test figures, in Optuna studies |
| `names.py` | names of searches and attributes |
| `database.py` | the database under it: opened, checked, its complaints explained |
| `backup.py` | copies of the database, and how they come back |
| `lock.py` | one process at a time |
| `status.py` | how far a run is, as a small file beside the database |
| `selection.py` | which network of a store to take |
| `upgrade.py`, `old_form.py` | stores of gatesearch 0.1.0, and how their form differs |
"""

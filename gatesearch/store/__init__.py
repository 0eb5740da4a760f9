"""The store of a study: everything that outlives a run. Needs no torch.

| file | contents |
|---|---|
| `store.py` | the store: definition, baselines, trials and test figures, in Optuna studies |
| `optuna_trials.py` | the store's searches and trials in Optuna: drawn, read, copied |
| `patterns.py` | configurations that are tried on a supernet without training |
| `opening.py` | opens a store to be written or read; refuses one of another definition |
| `names.py` | names of searches and attributes |
| `database.py` | opens and checks the database under the store, and explains its errors |
| `server.py` | the URL of a server: parsed, shown without secrets, its errors explained |
| `backup.py` | backs the database up and restores it |
| `integrity.py` | checksums of what the database holds |
| `lock.py` | lets one process at a time write to a store |
| `predictions.py` | reads and checks the file of predictions for the report |
| `tidy.py` | refuses links and pipes in a store's folder, and removes leftovers |
| `status.py` | progress of a run, as a small file beside the database |
| `status_form.py` | the form of that file, by which it is validated |
| `selection.py` | chooses a network of a store |
| `upgrade.py`, `old_form.py` | converts stores of gatesearch 0.1.0 |
"""

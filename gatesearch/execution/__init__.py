"""Who trains: jobs as JSON, workers and the executors that run them. Knows no store.

| file | what |
|---|---|
| `jobs.py` | one training as JSON, and the files in its folder |
| `worker.py` | trains a job, in whichever process |
| `executors.py`, `ray_executor.py` | this process, processes with a device each, Ray |
| `pool.py` | running jobs, and their results as they end |
"""

"""Execute trainings: jobs as JSON, workers, and the executors that run them. Knows no store.

| file | contents |
|---|---|
| `jobs.py` | a job (one training as JSON), and the files in its folder |
| `worker.py` | trains the network of a job, in any process |
| `executors.py` | run jobs in this process, or in others with devices of their own |
| `ray_executor.py` | runs jobs on Ray |
| `pool.py` | hands jobs to an executor, and yields their results as they end |
"""

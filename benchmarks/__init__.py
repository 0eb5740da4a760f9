"""What must be fast, as ratios measured in one run on one machine: `python -m benchmarks`.

Each file measures one promise and returns `Figure`s; a new promise is a file and a line here. Both
sides of a ratio are timed in turns in one process, and the median over the pairs counts, so that
neither a slow machine nor other processes on it decide.
"""

# Name -> module of this package with a function `measure() -> list[Figure]`; the longest last.
MEASUREMENTS: dict[str, str] = {
    "step_time": "a supernet's training step against T+1 plain ones",
    "step_memory": "its peak memory against theirs, all alive at once",
    "imported_step": "the step on imported networks, against T+1 plain ones",
    "imported_latency": "latency of compact networks of imported ones against their FLOPs",
    "method_steps": "a training step of each sharing method against plain passes (minutes)",
    "cuda_graph": "an epoch with steps recorded as CUDA graphs against one without",
    "weightings": "a step under each weighting against the plain sum (minutes)",
    "compact": "latency of a compact network against its FLOPs",
    "budgets": "how well gates are projected into random budgets",
    "patterns": "cost by formula against fvcore (minutes)",
    "latency_budgets": "networks cut inside latency budgets, in a new process (minutes)",
    "loading": "data loading and augmentation within a training step",
    "plain_loading": "the same set through a plain Dataset of files and a DataLoader",
    "streaming": "memory of a set of 20 GB that is read in shuffled blocks",
    "new_study": "`gatesearch new` on 10,000 photographs and masks",
    "preparing": "images per second that a core prepares",
    "augment": "augmentation of a batch against the per-sample form of LibMTL's data set",
    "search_overhead": "search and store within a trial",
    "report": "reports of 40 and of 1,000 trials",
    "checkpoints": "checkpoints within a training",
    "large_store": "opening, resuming, reporting 10,000 trials; their status",
    "workers": "trials per hour of two processes against one (minutes)",
    "scenes": "the whole of `gatesearch run --study scenes --n-trials 6` (minutes)",
    "damage": "2,000 kinds of damage to the files of a run, against its commands (half an hour)",
    "one_shot": "one training for the front against eight separate searches (an hour, resumable)",
    "recipe": "InterroGate against MTL and Cross-stitch on real frames (a day, resumable)",
}

# Measured only when they are named.
LONG = ("damage", "one_shot", "recipe")

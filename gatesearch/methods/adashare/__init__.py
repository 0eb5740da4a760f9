"""AdaShare: per task, which residual blocks of one shared encoder are computed or skipped.

| file | contents |
|---|---|
| `method.py` | the `Method`: phases, start, finish |
| `options.py` | options and search space |
| `policies.py` | policies as data: the published ones, those of a file, their checks |
| `supernet.py` | the encoder with a select-or-skip policy per task and block |
| `policy_loss.py` | L_sparsity, L_sharing, the curriculum |
| `plan.py` | what the network of a policy computes, and that network |
| `policy_cost.py` | its exact cost by formula |
| `fitting.py` | policies made to fit budgets |
| `choice.py` | policies drawn, and the choice among them on the validation part |
"""

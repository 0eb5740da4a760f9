"""gatesearch as a Python library: gated networks with a user's heads, in a user's training loop.

| file | contents |
|---|---|
| `encoder.py` | `gs.encoder`: a backbone with its initial weights |
| `own_heads.py` | accepts a user's heads, or refuses them before anything is trained |
| `network.py` | `gs.InterroGate`: the supernet for any training loop |
| `projection.py` | `gs.project`: opens and closes gates until a budget is used up |
| `saving.py` | `gs.save`, `gs.load`: compact networks in files |

`gs.search`, which trains by a user's function, is `gatesearch.search.own_training`.
"""

"""Commands as messages print them, which work as they stand."""

import shlex
from pathlib import Path


def shown_command(verb: str, *options: str, study: str, out: Path | None, storage: str) -> str:
    """Spell a command on the store of a study as the user named it.

    A password of the storage is masked, and has to be put in again.

    Args:
        verb: The subcommand, as `report`.
        options: Further words of the command.
        study: Value of `--study`.
        out: Value of `--out`; None without it.
        storage: Value of `--storage`; empty without it.

    >>> shown_command("export", "--trial", "mtl + pcgrad", study="my study.toml", out=None,
    ...               storage="")
    "gatesearch export --study 'my study.toml' --trial 'mtl + pcgrad'"
    """
    words = ["gatesearch", verb, "--study", study]
    if out is not None:
        words += ["--out", str(out)]
    if storage:
        from gatesearch.store.lock import server_url

        words += ["--storage", server_url(storage).render_as_string()]
    return shlex.join([*words, *options])

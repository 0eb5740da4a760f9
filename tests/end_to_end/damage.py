"""Damage one file of a finished run, give one command, and judge what comes of it.

    python -m tests.end_to_end.damage FOLDER [--first N] [--count N]

A case is drawn from its number alone: a file, a kind of damage, and a command that reads the file.
It is judged bad if the command ends with a traceback, with a code that no user's fault has, does
not end in half a minute, takes gigabytes, touches what a link points to, or ends with success and
another answer than the undamaged files give without naming the damaged file. After a `run` that was
refused, the undamaged file is put back, and the right answer must be given again.

There are four states of a store (`TREES`). A run that was cut off must come to the answers and
networks of one that was not, whichever of its files was damaged, or refuse that file. A store of
gatesearch 0.1.0 has no checksums, so that a changed figure in it is taken for the truth.

Commands run in forks of this process, which has imported everything; so a case takes a second.
"""

import argparse
import contextlib
import fnmatch
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.forks import MODULES

TINY = Path(__file__).with_name("tiny.toml")
OLD_STORE = Path(__file__).parents[1] / "store" / "gatesearch_0_1_0.zip"
PATIENCE = 30  # seconds
WHOLE_RUN = 600  # seconds; for undamaged files, on a busy machine
MEMORY = 3 * 2**30  # bytes; of a fork with torch in it
CODES = (0, 2, 3, 4)

STUDY = ("--study", "tiny.toml")
PHOTOS = ("--image", "photos", "--to", "drawn")
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", *STUDY, "--n-trials", "3", "--json"),
    "reuse": ("run", *STUDY, "--n-trials", "0", "--out", "runs/second", "--reuse", "runs/tiny",
              "--json"),
    "report": ("report", *STUDY, "--json"),
    "select": ("select", *STUDY, "--json"),
    "status": ("status", *STUDY, "--json"),
    "export trial": ("export", *STUDY, "--trial", "1", "--to", "again/net.safetensors", "--json"),
    "export stl": ("export", *STUDY, "--trial", "stl", "--to", "again/net.safetensors", "--json"),
    "predict": ("predict", "--model", "exported/net.safetensors", *PHOTOS),
    "predict onnx": ("predict", "--model", "exported/net.onnx", *PHOTOS),
    "bench": ("bench", "--model", "exported/net.safetensors", "--runtime", "eager",
              "--seconds", "0", "--json"),
    "data check": ("data", "check", "scenes"),
    "flops": ("flops", *STUDY, "--json"),
}  # fmt: skip
ANY = ("run", "report", "select", "status", "export trial")
# Commands that read no store; what they read is the same in `behind` as in `finished`.
APART = ("predict", "predict onnx", "bench", "data check", "flops")
# Files of a finished run -> commands that read them.
READERS: dict[str, tuple[str, ...]] = {
    "tiny.toml": ("run", "report", "flops", "status"),
    "runs/tiny/study.db": (*ANY, "reuse"),
    "runs/tiny/lock": ("run", "status", "report"),
    "runs/tiny/log.jsonl": ("run", "status"),
    "runs/tiny/status.json": ("run", "status"),
    "runs/tiny/predictions.npz": ("run", "report", "export trial"),
    "runs/tiny/study.db.backup*": ("run", "status"),
    "runs/tiny/trials/*/model.*": ("run", "export trial"),
    "runs/tiny/trials/*/*.json*": ("run", "report", "status"),
    "runs/tiny/baselines/*": ("run", "export stl", "reuse"),
    "exported/net.onnx": ("predict onnx",),
    "exported/net.[!o]*": ("predict", "bench"),
    "photos/*": ("predict",),
    "data/*": ("run", "data check"),
}
# Tree -> share of the cases, which is small where `run` trains on:
# `finished`; `behind`, whose database lacks a trial that has its result on disk; `cut off`, killed
# in the training of its last trial; `0.1.0`, written by that version and cut off alike.
TREES = {"finished": 9, "behind": 4, "cut off": 2, "0.1.0": 1}
# Of trees in which not all of `READERS` are damaged: file -> commands that read it.
OTHER_READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "cut off": {
        "runs/tiny/trials/0002/*": ("run", "run", "run", "status"),
        "runs/tiny/[sl]*": ("run", "report", "status"),
    },
    "0.1.0": {
        "runs/tiny/study.db": ("run", "report", "select", "status", "export stl"),
        "runs/tiny/status.json": ("run", "status"),
        "runs/tiny/trials/*": ("run", "report"),
        "runs/tiny/[bw]*/*": ("run", "report", "export stl"),
    },
}
# Keys of answers that differ from call to call.
VOLATILE = {
    *("updated", "started", "process", "holder", "backup", "per_hour", "seconds_left"),
    *("median_ms", "p95_ms", "images_per_second", "memory_mib", "ratio"),
}


@dataclass(frozen=True)
class Outcome:
    """What a command left: its code, its texts, and what it wrote."""

    code: int | None
    stdout: str
    stderr: str
    written: Mapping[str, str]
    seconds: float
    memory: int

    @property
    def answer(self) -> object:
        """What the user is told: the JSON object without times, and digests of what was written."""
        last = self.stdout.splitlines()[-1] if self.stdout.strip() else ""
        try:
            told = steady(json.loads(last))
        except ValueError:
            told = None
        return told, dict(self.written)


def steady(value: object) -> object:
    """Leave out of an answer what differs from call to call."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


# --- ways of damage -----------------------------------------------------------------------------


def cut(path: Path, draw: random.Random) -> str:
    data = path.read_bytes()
    length = draw.randrange(max(1, len(data)))
    path.write_bytes(data[:length])
    return f"cut to {length} bytes"


def emptied(path: Path, draw: random.Random) -> str:
    path.write_bytes(b"")
    return "emptied"


def flipped(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"\0")
    place, bit = draw.randrange(len(data)), draw.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f"bit {bit} of byte {place} flipped"


def zeroed(path: Path, draw: random.Random) -> str:
    data = bytearray(path.read_bytes() or b"\1")
    place = draw.randrange(len(data))
    data[place : place + 512] = bytes(len(data[place : place + 512]))
    path.write_bytes(data)
    return f"512 bytes from {place} zeroed"


def lengthened(path: Path, draw: random.Random) -> str:
    path.write_bytes(path.read_bytes() + draw.randbytes(100))
    return "100 bytes appended"


def retyped(path: Path, draw: random.Random) -> str:
    """Put a value of another type or size somewhere into a JSON file, else into a line of it."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draw.randrange(len(lines))
    root = json.loads(lines[number])
    places = list(_places(root))
    holder, key = draw.choice(places)
    values = [None, True, "x", "\ud800", -1, 0, 1.5, 2**70, 1e308, 1e30, [], {}, [[1]], {"x": {}}]
    value = draw.choice([v for v in values if type(v) is not type(holder[key]) or v != holder[key]])
    was, holder[key] = holder[key], value
    text = json.dumps(root)
    if draw.random() < 0.1:
        text = text.replace(json.dumps(value), "[" * 100_000 + "]" * 100_000, 1)
        value = "[[[... 100,000 deep"
    lines[number] = text
    path.write_text("\n".join(lines) + ("\n" if path.suffix == ".jsonl" else ""))
    return f"{key!r} changed from {str(was)[:30]!r} to {str(value)[:30]!r}"


def _places(value: object):
    items = (
        value.items() if isinstance(value, dict) else
        enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def pipe(path: Path, draw: random.Random) -> str:
    path.unlink()
    os.mkfifo(path)
    return "a named pipe"


def linked(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.symlink_to(path.absolute().parents[len(path.parts) - 1] / "sentinel")
    return "a link to another file"


def folder(path: Path, draw: random.Random) -> str:
    path.unlink()
    path.mkdir()
    return "a folder"


def gone(path: Path, draw: random.Random) -> str:
    path.unlink()
    return "gone"


def swapped(path: Path, draw: random.Random) -> str:
    """Take the file of the same name of a neighbour, such as another trial's result."""
    others = [p for p in path.parent.parent.glob(f"*/{path.name}") if p.parent != path.parent]
    others = others or [p for p in path.parent.iterdir() if p != path and p.is_file()]
    other = draw.choice(sorted(others)) if others else path
    path.write_bytes(other.read_bytes() if others else b"{}")
    return f"replaced by {other}"


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (
    cut, emptied, flipped, flipped, flipped, zeroed, lengthened, retyped, retyped, pipe, linked,
    folder, gone, swapped,
)  # fmt: skip


# --- one command in a fork ----------------------------------------------------------------------


def give(command: str, home: Path, *, patience: float = PATIENCE) -> Outcome:
    """Give a command in a folder."""
    started = time.monotonic()
    texts = [home / "stdout", home / "stderr"]
    for name in ("again", "drawn"):
        (home / name).mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        _become(COMMANDS[command], home, texts)
    code, usage = None, None
    while usage is None and time.monotonic() - started < patience:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            code, usage = os.waitstatus_to_exitcode(status), used
        else:
            time.sleep(0.01)
    if usage is None:
        os.kill(pid, signal.SIGKILL)
        usage = os.wait4(pid, 0)[2]
    written = {
        f"{name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for name in ("again", "drawn")
        for path in sorted((home / name).iterdir())
    }
    for name in ("again", "drawn"):
        shutil.rmtree(home / name)
    stdout, stderr = (text.read_text(errors="replace") for text in texts)
    for text in texts:
        text.unlink()
    return Outcome(
        code, stdout, stderr, written, time.monotonic() - started, usage.ru_maxrss * 1024
    )


def _become(arguments: tuple[str, ...], home: Path, texts: list[Path]) -> None:
    code = 99
    try:
        os.setsid()
        os.chdir(home)
        for descriptor, text in enumerate(texts, start=1):
            os.dup2(os.open(text, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.argv = ["gatesearch", *arguments]
        from gatesearch.cli import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- cases --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One damage and one command.

    Attributes:
        number: Draws everything else.
        tree: A key of `TREES`.
        file: The damaged file, relative to the tree.
        damage: How it is damaged.
        command: A key of `COMMANDS`.
    """

    number: int
    tree: str
    file: str
    damage: Callable[[Path, random.Random], str]
    command: str

    @classmethod
    def draw(cls, number: int, trees: Path) -> "Case":
        draw = random.Random(number)
        (tree,) = draw.choices(list(TREES), list(TREES.values()))
        readers = OTHER_READERS.get(tree, READERS)
        pattern = draw.choice(list(readers))
        files = sorted(
            str(path.relative_to(trees / tree))
            for path in (trees / tree).rglob("*")
            if path.is_file()
        )
        files = [file for file in files if fnmatch.fnmatch(file, pattern)]
        files = files or ["runs/tiny/study.db"]
        file = draw.choice(files)
        commands = readers[pattern] if fnmatch.fnmatch(file, pattern) else ANY
        # `run` takes longest.
        (command,) = draw.choices(commands, [1 if name == "run" else 2 for name in commands])
        kinds = [d for d in DAMAGES if d is not retyped or file.endswith((".json", ".jsonl"))]
        return cls(number, tree, file, draw.choice(kinds), command)


def judge(case: Case, trees: Path, home: Path, right: Mapping[tuple[str, str], object]) -> str:
    """Run a case in a copy of its tree.

    Returns:
        What was bad, in a few lines; empty if nothing was.
    """
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(trees / case.tree, home)
    sentinel = home / "sentinel"
    sentinel.write_text("not to be touched")
    here = os.getcwd()
    os.chdir(home)
    try:
        what = case.damage(Path(case.file), random.Random(case.number))
    finally:
        os.chdir(here)
    outcome = give(case.command, home)
    bad = _faults(case, outcome, right[case.tree, case.command])
    if case.tree == "cut off" and case.command == "run" and outcome.code == 0:
        bad += _left_by_training(home, trees / "finished")
    if sentinel.read_text() != "not to be touched":
        bad.append("the target of a link was changed")
    # A store of 0.1.0 that was brought to this version's form has other files.
    upgraded = case.tree == "0.1.0" and (home / "runs/tiny/starts").exists()
    # The store of a finished run is the same if another command finds the same.
    after = "select" if case.tree == "finished" else "run"
    if case.command == "run" and outcome.code and not bad and not upgraded:
        _put_back(case.file, trees / case.tree, home)
        again = give(after, home)
        if again.code != 0 or again.answer != right[case.tree, after]:
            bad.append(f"with the file put back: code {again.code}, {again.stderr[-600:]}")
        if case.tree == "cut off":
            left = _left_by_training(home, trees / "finished")
            # A checkpoint that was put back after the training had ended stays.
            bad += [fault for fault in left if case.file not in fault]
    if not bad:
        return ""
    return (
        f"case {case.number}: {case.tree}/{case.file} {what}; {case.command}: {'; '.join(bad)}\n"
        f"  code {outcome.code}, stderr ends: {outcome.stderr[-700:]!r}"
    )


def _faults(case: Case, outcome: Outcome, right: object) -> list[str]:
    bad = []
    if outcome.code is None:
        return [f"no end after {PATIENCE} s"]
    if outcome.code not in CODES or "Traceback" in outcome.stderr + outcome.stdout:
        bad.append("traceback" if "Traceback" in outcome.stderr else "a code of no user's fault")
    if outcome.memory > MEMORY:
        bad.append(f"{outcome.memory / 2**30:.1f} GiB")
    if outcome.code and len(outcome.stderr.splitlines()) > 24:
        bad.append("more than a screen of words")
    if outcome.code == 0 and (case.file.startswith("photos/") or case.file == "tiny.toml"):
        return bad  # another picture has other pixels, another definition other results
    if outcome.code == 0 and case.tree == "0.1.0":
        return bad  # without checksums
    named = Path(case.file).name in outcome.stderr or Path(case.file).stem in outcome.stderr
    if outcome.code == 0 and outcome.answer != right and not named:
        bad.append(f"silently another answer: {outcome.answer} in place of {right}"[:1500])
    return bad


def _left_by_training(home: Path, finished: Path) -> list[str]:
    """Compare networks with those of a run that was not cut off, and look for its checkpoints."""
    store = Path("runs/tiny")
    bad = [f"{path} is left" for path in (home / store).rglob("checkpoint-*")]
    networks = sorted(path.relative_to(finished) for path in finished.glob("runs/tiny/*/*/model.*"))
    bad += [
        f"{path} differs from an undisturbed run"
        for path in networks
        if not (home / path).is_file()
        or (home / path).read_bytes() != (finished / path).read_bytes()
    ]
    return bad


def _put_back(file: str, tree: Path, home: Path) -> None:
    path = home / file
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(tree / file, path)


# --- the trees ----------------------------------------------------------------------------------


def make_trees(folder: Path) -> Path:
    """Run the tiny study, export a network, and make all trees, unless they are there."""
    trees = folder / "trees"
    if (trees / "made").exists():
        return trees
    shutil.rmtree(trees, ignore_errors=True)
    finished = trees / "finished"
    finished.mkdir(parents=True)
    shutil.copy(TINY, finished / "tiny.toml")
    _make_photos(finished / "photos")
    two = ("run", *STUDY, "--n-trials", "2", "--json")
    COMMANDS["two"] = two
    _must(give("two", finished, patience=WHOLE_RUN))
    database = trees / "two.db"
    with sqlite3.connect(finished / "runs/tiny/study.db") as old, sqlite3.connect(database) as new:
        old.backup(new)
    _cut_off(shutil.copytree(finished, trees / "cut off"))
    _must(give("run", finished, patience=WHOLE_RUN))
    (finished / "exported").mkdir()
    for suffix in ("safetensors", "onnx"):
        COMMANDS["export"] = (
            *("export", *STUDY, "--trial", "1", "--to", f"exported/net.{suffix}", "--json"),
        )
        _must(give("export", finished, patience=WHOLE_RUN))
    del COMMANDS["export"], COMMANDS["two"]
    behind = shutil.copytree(finished, trees / "behind")
    shutil.move(database, behind / "runs/tiny/study.db")
    with zipfile.ZipFile(OLD_STORE) as old:
        old.extractall(trees / "0.1.0")
    (trees / "made").touch()
    return trees


def _cut_off(home: Path) -> None:
    """Kill `run` as soon as the training of the third trial has two checkpoints."""
    before = shutil.copytree(home, home.with_name("before"))
    trial = home / "runs/tiny/trials/0002"
    while True:
        pid = os.fork()
        if pid == 0:
            often = ("--set", "execution.checkpoint_minutes=1e-6")
            _become((*COMMANDS["run"], *often), home, [home / "stdout", home / "stderr"])
        while len(list(trial.glob("checkpoint-*"))) < 2 and os.waitpid(pid, os.WNOHANG)[0] == 0:
            time.sleep(0.001)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if not (trial / "result.json").exists():
            break
        shutil.rmtree(home)
        shutil.copytree(before, home)
    shutil.rmtree(before)
    for name in ("stdout", "stderr"):
        (home / name).unlink()
    # As if a worker process had trained; a run in one process writes none.
    (trial / "events.jsonl").write_text('{"event": "log", "message": "measuring"}\n')


def _make_photos(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in ("a.png", "b.jpg"):
        Image.fromarray(draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / name)


def _must(outcome: Outcome) -> Outcome:
    if outcome.code != 0:
        raise RuntimeError(f"{outcome.stdout}\n{outcome.stderr}")
    return outcome


class RightAnswers(dict[tuple[str, str], object]):
    """(tree, command) -> answer in a copy of the undamaged tree, given when first asked for."""

    def __init__(self, trees: Path, home: Path) -> None:
        super().__init__()
        self._trees, self._home = trees, home

    def __missing__(self, key: tuple[str, str]) -> object:
        tree, command = key
        if tree == "behind" and command in APART:
            return self["finished", command]
        shutil.rmtree(self._home, ignore_errors=True)
        shutil.copytree(self._trees / tree, self._home)
        self[key] = _must(give(command, self._home, patience=WHOLE_RUN)).answer
        return self[key]


def import_all() -> None:
    """Import what commands import, so that forks need not."""
    import matplotlib

    matplotlib.use("agg")
    for name in ("onnxruntime", *MODULES):
        importlib.import_module(name)


def bad_cases(folder: Path, numbers: range, told: Callable[[str], None]) -> list[str]:
    """Judge cases.

    Args:
        folder: Where trees are made, once, and cases run.
        numbers: Numbers of the cases.
        told: Receives a line of progress.

    Returns:
        One text per bad case.
    """
    import_all()
    trees = make_trees(folder)
    home = folder / f"case-{os.getpid()}"
    right = RightAnswers(trees, folder / f"right-{os.getpid()}")
    bad = []
    for number in numbers:
        case = Case.draw(number, trees)
        fault = judge(case, trees, home, right)
        if fault:
            bad.append(fault)
            told(fault)
        elif number % 50 == 0:
            told(f"case {number}, {len(bad)} bad so far")
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(folder / f"right-{os.getpid()}", ignore_errors=True)
    return bad


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.damage")
    parser.add_argument("folder", type=Path, help="where the finished run is made and kept")
    parser.add_argument("--first", type=int, default=0, metavar="N")
    parser.add_argument("--count", type=int, default=300, metavar="N")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    numbers = range(given.first, given.first + given.count)
    bad = bad_cases(given.folder.absolute(), numbers, lambda line: print(line, flush=True))
    print(f"{len(bad)} bad of {given.count}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks [--only NAME] [--json]`: one table; exit code 1 where a bar is missed."""

import argparse
import importlib
import json
import sys
from dataclasses import asdict

from benchmarks import LONG, MEASUREMENTS
from benchmarks.figure import Figure


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        epilog="\n".join(f"{name:16} {what}" for name, what in MEASUREMENTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, metavar="NAME",
                        help="measure this one alone (may be repeated)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    print(f"{'measurement':42} {'value':>10} {'bar':>10}  verdict  detail")
    for name in arguments.only or [n for n in MEASUREMENTS if n not in LONG]:
        print(f"{name} ...", end="\r", file=sys.stderr, flush=True)
        for figure in importlib.import_module(f"benchmarks.{name}").measure():
            figures.append(figure)
            print(figure.line(), flush=True)
    if arguments.json:
        print(json.dumps({"figures": [asdict(f) | {"met": f.met} for f in figures]}))
    return 0 if all(figure.met in (True, None) for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

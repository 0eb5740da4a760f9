"""`python -m gatesearch`: the command line without an installed script."""

from gatesearch.cli import main

main()

"""`python -m tenon` is the command line, where its script is not on the path."""

from tenon.cli import main

main()

"""`python -m springtide.cli`: how child processes are started, whatever the PATH is."""

from springtide.cli.app import main

main()

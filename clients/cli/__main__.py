"""`python -m clients.cli`, as in version 0.1."""

from clients.__main__ import main

main()

"""`python -m agents_pg_session.cli`: the command line where its script is not on the PATH."""

from agents_pg_session.cli import main

main()

"""`python -m subjectgen` is the command `subjectgen`; `torchrun -m subjectgen` starts several of it."""

from subjectgen.cli import main

main()

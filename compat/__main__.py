"""`python -m compat`: the `compat` command."""

from compat.cli import main

raise SystemExit(main())

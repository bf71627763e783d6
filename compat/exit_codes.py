"""The exit codes of the `compat` command; docs/stored-form.md says what each means."""

OK, FINDINGS, INTERRUPTED, INTERNAL, USAGE, NOTHING = 0, 1, 2, 3, 4, 5

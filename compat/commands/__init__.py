"""What each command of `compat` does: from parsed arguments to an exit code, one module a group of commands.

Front ends without logic of their own; nothing heavy is imported before a command needs it.
"""

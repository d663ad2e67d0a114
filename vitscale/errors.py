"""The two kinds of failure that the command line tells apart."""


class UserError(Exception):
    """A mistake that the user can fix: one sentence that says what, where and the way out.

    `vitscale.cli` prints it without a traceback and exits with code 2. Everything else is ours: exit code 1.
    """

"""The ways a command can end early that the command line tells apart."""


class UserError(Exception):
    """A mistake that the user can fix: one sentence that says what, where and the way out.

    `vitscale.cli` prints it without a traceback and exits with code 2. Everything else is ours: exit code 1.
    """


class Preempted(Exception):
    """A run was asked to stop (SIGTERM) and has saved its state: exit code 75, the same command goes on."""

"""The one exception meant for people."""


class UserError(ValueError):
    """Bad input or configuration: the message says what, got, expected and how to fix it.

    The command line prints it without a traceback and exits with code 2.
    """

"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something the person can put right: what is wrong and what to do, in one line.

    The library raises it; the command line prints it after `error:` and exits with status 2.
    Any other exception is a fault of ours and keeps its traceback.
    """

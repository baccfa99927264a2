"""The one error that is the user's to mend: a config, a card, a file or a checkpoint."""


class UserError(ValueError):
    """Says in one line which file or key, what was found there, and what to do.

    Commands print the line and exit with status 2; `--debug` shows the traceback.
    """

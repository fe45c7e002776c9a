"""The one error type that a user of the package is meant to read."""


class BadInput(ValueError):
    """A request that cannot be served, said in one line: what was expected; what came; what to do.

    The command line prints the message after `kemem: ` and exits with status 2, before any long work.
    """

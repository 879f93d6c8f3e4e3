"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake of the user's own: one sentence that names the culprit and the mend.

    The command line prints it and exits with status 2, without a traceback.
    """

"""The one exception for what a user can mend."""

from __future__ import annotations


class TresseError(Exception):
    """Something the user can mend. The message is one line and names the mend.

    The command line prints it on standard error and exits with status 2; the page shows it as it is.
    """

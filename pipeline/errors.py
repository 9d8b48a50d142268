"""Exceptions for problems that a user can fix. Any other exception that reaches the user is a bug in priorkit."""


class PriorkitError(Exception):
    """Base class for errors that a user can fix. The message names the problem and says how to fix it."""


class SettingsError(PriorkitError, ValueError):
    """Raised when a setting, recipe or option is invalid."""


class InputError(PriorkitError, ValueError):
    """Raised when an input (URL list, image shard, embedding shard or prior) is missing, unreadable or invalid."""


class FolderError(PriorkitError):
    """Raised when an output folder cannot be used.

    For example, the folder contains other files, was written with different settings, or is in use by another process.
    """


class Interrupted(PriorkitError):
    """Raised when work stops early on request, for example after Ctrl-C. Running the same command again continues the
    work, or starts it again if no progress was saved."""

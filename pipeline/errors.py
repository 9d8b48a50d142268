"""Exceptions for problems that a user can fix. Any other exception that escapes is a bug in priorkit."""


class PriorkitError(Exception):
    """Base of all errors that a user can fix: the message names the bad value and the fix."""


class SettingsError(PriorkitError, ValueError):
    """A setting, recipe or option is wrong."""


class InputError(PriorkitError, ValueError):
    """An input (URL list, image shard, embedding shard, prior) is missing, unreadable or invalid."""


class FolderError(PriorkitError):
    """An output folder cannot be written: it has other files or settings, or another process writes to it."""


class Interrupted(PriorkitError):
    """The work was stopped on request; the same command continues from there."""

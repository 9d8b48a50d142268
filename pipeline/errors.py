"""The exceptions that priorkit raises for what a user can mend. Anything else that escapes is a bug of ours."""


class PriorkitError(Exception):
    """Base of all errors that a user can mend: the message names the bad value and the fix."""


class SettingsError(PriorkitError, ValueError):
    """A setting, recipe or option is wrong."""


class InputError(PriorkitError, ValueError):
    """An input (URL list, image shard, embedding shard, prior) is missing, unreadable or unsound."""


class FolderError(PriorkitError):
    """An output folder cannot be written: it holds other work, other settings, or another writer."""


class Interrupted(PriorkitError):
    """The work was stopped on request, at a point from which the same command goes on."""

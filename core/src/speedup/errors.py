"""Every error that speedup raises on purpose; all of them are a `SpeedupError`."""


class SpeedupError(Exception):
    """The base of all errors of speedup: catch this one to catch them all."""


class MaskError(SpeedupError, ValueError):
    """The masks, or the file that holds them, cannot be used with this model."""


class InputError(SpeedupError, ValueError):
    """The model or the dummy input cannot be used."""


class PluginError(SpeedupError):
    """A plugin could not be loaded, or declares something that it may not."""


class PluginConflictError(PluginError):
    """Two rules claim the same op, and nothing says which of them wins."""


class SignatureError(SpeedupError, ValueError):
    """An axes signature is malformed, or does not fit the call that it should describe."""


class RuleError(SpeedupError):
    """A rule raised an exception, or gave an answer that the engine cannot accept."""


class TraceError(SpeedupError):
    """The model could not be recorded while it ran on the dummy input."""


class CheckError(SpeedupError):
    """The small model does not agree with the masked one, so nothing was changed."""


class StorageError(SpeedupError):
    """A saved model or a file of weights cannot be written, read, or used with this model."""

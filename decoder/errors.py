"""Every error that Volition raises on purpose.

VolitionError
├── SessionError          a recording on disk can't be read, or isn't what it says
│   └── ImportFailedError a foreign file (NWB, XDF) can't become a session
├── BundleError           a decoder bundle is missing, damaged or of another version
├── ProviderError         ONNX Runtime can't run where it was asked to run
├── StreamError           an LSL stream isn't there or isn't described as the contract says
├── TrainingError         pretraining can't start or go on
└── SettingsError         a setting is out of range or contradicts another

A message says what was seen, what was expected and what to do. In the tick loop a lost
stream is a state (`stale`), never an exception.
"""


class VolitionError(Exception):
    """Base of every error that a user can act on."""


class SessionError(VolitionError):
    """A recording on disk can't be read, or isn't what it says."""


class ImportFailedError(SessionError):
    """A foreign file (NWB, XDF) can't become a session."""


class BundleError(VolitionError):
    """A decoder bundle is missing, damaged or of another version."""


class ProviderError(VolitionError):
    """ONNX Runtime can't run where it was asked to run."""


class StreamError(VolitionError):
    """An LSL stream isn't there or isn't described as the contract says."""


class TrainingError(VolitionError):
    """Pretraining can't start or go on."""


class SettingsError(VolitionError):
    """A setting is out of range or contradicts another."""

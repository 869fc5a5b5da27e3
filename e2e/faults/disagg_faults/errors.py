"""What the campaign raises on purpose."""


class FaultsError(Exception):
    pass


class NetworkError(FaultsError):
    """Namespaces cannot be made on this machine, or a command on them failed."""


class EngineProcessError(FaultsError):
    """An engine's process did not start, or said what it must not."""


class HangError(FaultsError):
    """Something did not come to its end in its time."""

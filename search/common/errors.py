"""What ends a trial, a worker or a session early."""


class InfrastructureError(RuntimeError):
    """Raised by an objective: not the configuration's fault. It is tried again, at most MAX_RETRY times."""


class Interrupted(RuntimeError):
    """Raised by an objective that was told to stop: its configuration waits for the next session."""


class UsedUp(RuntimeError):
    """Raised by an objective: no configuration is left that was not tried. Its trial was none."""


class TooManyFailures(RuntimeError):
    """MAX_FAILURES trials in a row failed in this worker."""

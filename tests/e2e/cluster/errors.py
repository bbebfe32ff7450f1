"""What the harness raises."""


class ClusterError(Exception):
    """The cluster could not be brought up, or did not do in time what was asked of it; the message says what and why."""


class Unavailable(ClusterError):
    """This machine lacks something the harness needs (a binary, a package, a privilege); the message says how to get it."""

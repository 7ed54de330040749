"""Errors with a message for people, in one module without imports."""


class DataError(ValueError):
    """Data that is missing, broken or unfit for the request; the message is for people.

    Example:
      >>> from metajax.errors import DataError
      >>> issubclass(DataError, ValueError)
      True
    """

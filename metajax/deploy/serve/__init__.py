"""A service of trained learners over HTTP: sessions with classes of their own, answered in batches."""

from metajax.deploy.serve.app import make_app, serve
from metajax.deploy.serve.sessions import Limits, Refusal, Sessions, add_limits, limits_of

__all__ = ["Limits", "Refusal", "Sessions", "add_limits", "limits_of", "make_app", "serve"]

"""Sessions of a service: whose classes they are, how many there may be, and what they may ask for."""

import argparse
import binascii
import secrets
import time
import warnings
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from metajax.data.files import decoding
from metajax.deploy.classifier import Classifier
from metajax.errors import DataError
from metajax.names import composed, shown

_LONGEST_NAME = 100


class Limits(NamedTuple):
    """Limits of a service.

    Attributes:
      sessions: Most sessions at a time.
      classes: Most classes of a session.
      examples: Most pictures that a session learns.
      queries: Most pictures of a request for answers.
      request_bytes: Most bytes of a request.
      pixels: Most pixels of a picture.
      together: Most requests for answers that are computed at once.
      idle_seconds: Time without a request after which a session may be ended for a new one.
    """

    sessions: int = 100
    classes: int = 50
    examples: int = 500
    queries: int = 64
    request_bytes: int = 8 * 2**20
    pixels: int = 25_000_000
    together: int = 16
    idle_seconds: float = 3600.0


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Adds the address and the limits of a service to a command.

    Args:
      parser: Parser of the command; changed in place.

    Example:
      >>> import argparse
      >>> parser = argparse.ArgumentParser()
      >>> add_limits(parser)
      >>> limits_of(parser.parse_args(["--most_sessions=3"])).sessions
      3
    """
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; by default this machine alone"
    )
    parser.add_argument("--port", type=int, default=8000, help="port; by default 8000")
    for name, value in Limits()._asdict().items():
        words = f"most {name.replace('_', ' ')}; by default {value:g}"
        parser.add_argument(f"--most_{name}", type=type(value), default=value, help=words)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """Takes the limits out of parsed arguments.

    Args:
      arguments: Arguments of a parser that `add_limits` has changed.

    Returns:
      The limits.

    Example:
      >>> import argparse
      >>> parser = argparse.ArgumentParser()
      >>> add_limits(parser)
      >>> limits_of(parser.parse_args([])) == Limits()
      True
    """
    return Limits(*(getattr(arguments, f"most_{name}") for name in Limits._fields))


class Refusal(DataError):
    """A request that is refused.

    Attributes:
      status: Status of HTTP, of 400 to 499.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Session:
    """Classes that a user has taught, and the time of the last request."""

    def __init__(self, classifier: Classifier, now: float):
        self.classifier, self.used = classifier, now


class Sessions:
    """The sessions of a service. Its methods are for one thread.

    Attributes:
      base: Trained learner that every session starts from, with its classes if it has learned any.
      limits: Limits.

    Example:
      >>> import metajax.deploy as deploy
      >>> spec = deploy.LearnerSpec("protonet", "mlp", ways=2, examples=4)
      >>> meta = deploy.make_learner_of(spec).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
      >>> bundle = deploy.Bundle(spec, deploy.ImageForm((8, 8, 1), (0.5,), (0.5,)), meta)
      >>> sessions = Sessions(deploy.Classifier(bundle), Limits(sessions=1))
      >>> len(sessions.start())
      32
      >>> sessions.start()
      Traceback (most recent call last):
      metajax.deploy.serve.sessions.Refusal: 1 sessions are open, which is the limit; end one, or wait
    """

    def __init__(
        self,
        base: Classifier,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.base, self.limits = base, limits
        self._clock, self._open = clock, dict[str, _Session]()

    def start(self) -> str:
        """Starts a session, in place of the one that has been idle longest if there are as many as may be.

        Returns:
          Name of the session, which nobody guesses.

        Raises:
          Refusal: If there are too many, and none is idle.
        """
        now = self._clock()
        if len(self._open) >= self.limits.sessions:
            oldest = min(self._open, key=lambda name: self._open[name].used)
            if now - self._open[oldest].used < self.limits.idle_seconds:
                raise Refusal(
                    429,
                    f"{len(self._open)} sessions are open, which is the limit; end one, or wait",
                )
            del self._open[oldest]
        name = secrets.token_hex(16)
        self._open[name] = _Session(self.base, now)
        return name

    def end(self, name: str) -> None:
        """Ends a session.

        Args:
          name: Name of the session.

        Raises:
          Refusal: If there is no such session.
        """
        self._session(name)
        del self._open[name]

    def learn(self, name: str, asked: Any) -> dict[str, Any]:
        """Learns classes, or more examples of them.

        Args:
          name: Name of the session.
          asked: Parsed request, {"examples": {class: [image file in base64, ...]}}.

        Returns:
          Numbers of examples by class, and warnings.

        Raises:
          Refusal: If the request makes no sense, or exceeds a limit.
        """
        session = self._session(name)
        given = _field(asked, "examples", dict)
        for label, pictures in given.items():
            if not 1 <= len(label) <= _LONGEST_NAME or not label.isprintable():
                raise Refusal(
                    422,
                    f"the class {shown(label)} has no usable name; use 1 to {_LONGEST_NAME} letters",
                )
            if not isinstance(pictures, list) or not pictures:
                raise Refusal(
                    422, f"the class {shown(label)} has no list of pictures; give at least one"
                )
        known = session.classifier.examples
        self._limit(len({*known, *map(composed, given)}), self.limits.classes, "classes")
        total = sum(map(len, known.values())) + sum(map(len, given.values()))
        self._limit(total, self.limits.examples, "examples of a session")
        contents = {label: self._contents(pictures) for label, pictures in given.items()}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            session.classifier = session.classifier.learn(contents)
        return {**_counts(session.classifier), "warnings": [str(w.message) for w in found]}

    def forget(self, name: str, asked: Any) -> dict[str, Any]:
        """Forgets a class.

        Args:
          name: Name of the session.
          asked: Parsed request, {"label": class}.

        Returns:
          Numbers of examples by class.

        Raises:
          Refusal: If the request makes no sense.
          DataError: If there is no such class.
        """
        session = self._session(name)
        session.classifier = session.classifier.forget(composed(_field(asked, "label", str)))
        return _counts(session.classifier)

    def question(self, name: str, asked: Any) -> tuple[Classifier, Any]:
        """Reads a request for answers.

        Args:
          name: Name of the session.
          asked: Parsed request, {"pictures": [image file in base64, ...]}.

        Returns:
          The session's classifier, and the pictures [M, H, W, C] uint8.

        Raises:
          Refusal: If the request makes no sense, exceeds a limit, or fewer than two classes are learned.
        """
        classifier = self._session(name).classifier
        pictures = _field(asked, "pictures", list)
        if not pictures:
            raise Refusal(422, "there is no picture to answer; give at least one")
        self._limit(len(pictures), self.limits.queries, "pictures of a request")
        if len(classifier.labels) < 2:
            raise Refusal(
                409,
                f"{len(classifier.labels)} classes are learned; learn two or more before asking",
            )
        return classifier, classifier.bundle.images.read(self._contents(pictures))

    def _session(self, name: str) -> _Session:
        if name not in self._open:
            raise Refusal(404, "there is no such session; start one by POST /sessions")
        session = self._open[name]
        session.used = self._clock()
        return session

    def _limit(self, count: int, most: int, what: str) -> None:
        if count > most:
            raise Refusal(413, f"{count} {what} are more than the limit of {most}; give fewer")

    def _contents(self, pictures: Sequence[Any]) -> list[bytes]:
        """Decodes base64, and looks at the size of pictures before anything is made of their pixels."""
        found = []
        for number, picture in enumerate(pictures):
            if not isinstance(picture, str):
                raise Refusal(422, f"picture {number} is no text; give image files in base64")
            try:
                content = b64decode(picture, validate=True)
            except (binascii.Error, ValueError):
                raise Refusal(
                    422, f"picture {number} is not in base64; give image files so"
                ) from None
            try:
                width, height = decoding.header(content).size
            except DataError:
                raise Refusal(422, f"picture {number} is not a readable image") from None
            self._limit(width * height, self.limits.pixels, f"pixels of picture {number}")
            found.append(content)
        return found


def _field(asked: Any, name: str, kind: type) -> Any:
    """Takes the only field of a request."""
    words = {dict: "an object", list: "a list", str: "a text"}
    if not isinstance(asked, Mapping) or set(asked) != {name} or not isinstance(asked[name], kind):
        raise Refusal(
            422, f"the request has to be an object with {words[kind]} named {name!r}, alone"
        )
    return asked[name]


def _counts(classifier: Classifier) -> dict[str, Any]:
    return {"classes": {name: len(pixels) for name, pixels in classifier.examples.items()}}

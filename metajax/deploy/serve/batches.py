"""Answers to questions of many sessions at once: what waits while one batch is computed is the next batch."""

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from metajax.deploy.classifier import Classifier


class Question(NamedTuple):
    """Pictures that a session asks about.

    Attributes:
      classifier: Classifier of two classes or more.
      pixels: Pictures [M, H, W, C] uint8, M of 1 or more.
    """

    classifier: Classifier
    pixels: np.ndarray


def answer_together(questions: Sequence[Question]) -> list[np.ndarray | Exception]:
    """Answers questions of several sessions, questions with equal states in one call.

    Support sets are padded by examples of weight zero to few sizes, so that states of different sessions have
    equal shapes; numbers of sessions and of queries are padded too.

    Args:
      questions: Questions.

    Returns:
      Probabilities [M, N] float32 for each question; the exception where one failed.
    """
    groups: dict[Any, list[int]] = {}
    found: list[Any] = [None] * len(questions)
    for number, question in enumerate(questions):
        try:
            compiled, fast = (
                question.classifier._adapted
            )  # of this room, and kept by the classifier
        except Exception as error:  # one session's trouble is not another's
            found[number] = error
            continue
        leaves, structure = jax.tree.flatten(fast)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        groups.setdefault((compiled, structure, shapes), []).append(number)
    for (compiled, *_), numbers in groups.items():
        for number, answer in _of_group(compiled, numbers, questions).items():
            found[number] = answer
    return found


def _of_group(
    compiled: Any, numbers: list[int], questions: Sequence[Question]
) -> dict[int, np.ndarray | Exception]:
    """Answers questions whose states have the same shapes."""
    asked = [questions[number] for number in numbers]
    room = _room(max(len(question.pixels) for question in asked), 4)
    pixels = [_padded(question.pixels, room) for question in asked]
    counts = [len(question.classifier.labels) for question in asked]
    states = [question.classifier._adapted[1] for question in asked]
    more = _room(len(asked), 2) - len(asked)
    first = asked[0].classifier
    try:
        stacked = jax.tree.map(lambda *leaves: jnp.stack([*leaves, *leaves[:1] * more]), *states)
        answers = _together(compiled.predict)(
            first._meta,
            stacked,
            jnp.asarray(np.stack([*pixels, *pixels[:1] * more])),
            jnp.asarray([*counts, *counts[:1] * more]),
            jnp.asarray(first.bundle.temperature, jnp.float32),
        )
        rows = np.asarray(answers)
    except Exception as error:
        return dict.fromkeys(numbers, error)
    return {
        number: row[: len(question.pixels), :count]
        for number, row, question, count in zip(numbers, rows, asked, counts, strict=False)
    }


@functools.lru_cache(maxsize=32)
def _together(predict: Callable[..., Any]) -> Callable[..., Any]:
    """Vectorizes the answers over sessions."""
    return jax.jit(jax.vmap(predict, (None, 0, 0, 0, None)))


def _room(count: int, base: int) -> int:
    """Rounds up to a power of a base: a program is compiled for each size."""
    room = 1
    while room < count:
        room *= base
    return room


def _padded(pixels: np.ndarray, room: int) -> np.ndarray:
    return np.concatenate([pixels, np.repeat(pixels[-1:], room - len(pixels), 0)])


class Batcher:
    """Collects questions while others are computed, and answers them together.

    Example:
      >>> from concurrent.futures import ThreadPoolExecutor
      >>> batcher = Batcher(ThreadPoolExecutor(1), 16)
    """

    def __init__(self, executor: Executor, together: int):
        self._executor, self._together = executor, together
        self._waiting: list[tuple[Question, asyncio.Future]] = []
        self._busy: asyncio.Task | None = None

    async def ask(self, question: Question) -> np.ndarray:
        """Answers a question, together with others that wait.

        Args:
          question: Question.

        Returns:
          Probabilities [M, N].
        """
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._busy is None or self._busy.done():
            self._busy = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting[: self._together], self._waiting[self._together :]
            questions = [question for question, _ in batch]
            found = await loop.run_in_executor(self._executor, answer_together, questions)
            for (_, answer), result in zip(batch, found, strict=True):
                if answer.done():  # whoever asked has gone
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)

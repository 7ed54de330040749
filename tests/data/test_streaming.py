"""Episodes of images on disk equal episodes of images in memory, bit for bit."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import SingleDeviceSharding
from PIL import Image

from helpers.toys import as_numbers
from metajax import train
from metajax.data import sources, streaming
from metajax.data.streaming import BY_TASK, Streamed
from metajax.episodes import augment, changes
from metajax.episodes.batches import BatchSampler
from metajax.episodes.pixels import PixelSampler
from metajax.episodes.store import EpisodeSampler, class_store
from metajax.errors import DataError
from metajax.evaluate import make_evaluate
from metajax.metagrads import backprop
from metajax.sharding import divided, over_episodes, task_mesh

DATA_DIR = os.environ.get("METAJAX_DATA_DIR", "")
KEY, TASKS = jax.random.key(3), 4
NUMBERS = np.arange(TASKS)
PLAIN = EpisodeSampler(ways=3, shots=1, queries=2)
AUGMENT = augment.compose(["shift", "flip"])
SAMPLERS = {
    "plain": PLAIN,
    "changed": EpisodeSampler(
        ways=9,
        shots=1,
        queries=2,
        rotations=True,
        augment=AUGMENT,
        changes=(changes.mix_classes, changes.label_noise),
    ),
    "varying": EpisodeSampler(ways=4, shots=2, queries=1, min_ways=2, min_shots=1),
    "batches": BatchSampler(7, rotations=True, augment=AUGMENT),
    "pixels": PixelSampler(points=5, queries=9, min_points=2),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Reads the training classes of a folder, on disk and in memory."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(10):
        (root / f"class {number}").mkdir()
        for index in range(3 + number % 3):
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"class {number}" / f"{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METAJAX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return [
            sources.load(f"folder:{root}", resident=resident).train
            for resident in ("never", "always")
        ]


def assert_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    leaves = (jax.tree.leaves(as_numbers(tree)) for tree in (ours, theirs))
    for one, other in zip(*leaves, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def read(sampler, images, steps, *, tasks=range(TASKS), workers=0):
    with streaming.training_pixels(
        sampler, images, key=KEY, steps=steps, tasks=tasks, workers=workers
    ) as pixels:
        return list(pixels)


def assert_same_episodes(sampler, streamed, resident, pixels, steps):
    ours = jax.jit(
        lambda store, raw, step: train.draw_tasks(
            streaming.sampler(sampler), Streamed(store, raw), KEY, step, NUMBERS, by_task=BY_TASK
        )
    )
    theirs = jax.jit(lambda store, step: train.draw_tasks(sampler, store, KEY, step, NUMBERS))
    store, full = class_store(streamed), class_store(resident)
    for step, raw in zip(steps, pixels, strict=True):
        assert_equal(ours(store, raw, step), theirs(full, step))


@pytest.mark.parametrize("name", SAMPLERS)
def test_episodes_are_those_of_images_in_memory(both, name):
    streamed, resident = both
    steps = range(5, 8)
    pixels = read(SAMPLERS[name], streamed, steps)
    assert_same_episodes(SAMPLERS[name], streamed, resident, pixels, steps)


def test_workers_read_the_same_and_any_step_can_be_the_first(both):
    pytest.importorskip("grain")
    sampler = SAMPLERS["changed"]
    alone = read(sampler, both[0], range(8))
    assert_equal(read(sampler, both[0], range(8), workers=2), alone)
    assert_equal(read(sampler, both[0], range(5, 8)), alone[5:])


def test_hosts_read_their_shares(both):
    parts = [read(PLAIN, both[0], range(3), tasks=part) for part in (range(2), [2, 3])]
    joined = [np.concatenate(step) for step in zip(*parts, strict=True)]
    assert_equal(joined, read(PLAIN, both[0], range(3)))


def test_a_share_is_what_the_devices_of_this_process_hold():
    assert streaming.share(divided(task_mesh()), 8) == list(range(8))
    assert streaming.share(SingleDeviceSharding(jax.devices()[0]), 3) == [0, 1, 2]

    class TwoHosts:
        def addressable_devices_indices_map(self, shape):
            assert shape == (8,)
            return {"b": (slice(6, 8, None),), "a": (slice(2, 4, None),)}

    assert streaming.share(TwoHosts(), 8) == [2, 3, 6, 7]


def quadratic(meta, key, episode):
    """Computes a loss of every input, and a metric of the key."""
    loss = jnp.mean((episode.query.inputs * meta["scale"] - jnp.mean(episode.support.inputs)) ** 2)
    return loss, {"loss": loss, "noise": jax.random.normal(key)}


def test_training_is_that_of_images_in_memory(both):
    streamed, resident = both
    optimizer = optax.sgd(0.1)
    meta_grad = backprop(quadratic)
    theirs = jax.jit(train.make_step(meta_grad, optimizer, PLAIN, num_tasks=TASKS))
    sample = streaming.sampler(PLAIN)
    ours = jax.jit(train.make_step(meta_grad, optimizer, sample, num_tasks=TASKS, by_task=BY_TASK))
    states = [train.init_state({"scale": jnp.ones(3)}, optimizer, KEY)] * 2
    store, full, sharding = class_store(streamed), class_store(resident), divided(task_mesh())
    with streaming.training_pixels(
        PLAIN,
        streamed,
        key=KEY,
        steps=range(3),
        tasks=streaming.share(sharding, TASKS),
        workers=0,
    ) as pixels:
        for raw in streaming.ahead(pixels, lambda raw: jax.device_put(raw, sharding)):
            states[0], metrics = ours(states[0], Streamed(store, raw))
            states[1], expected = theirs(states[1], full)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), metrics, expected
            )
    assert int(states[0].step) == 3
    np.testing.assert_allclose(states[0].meta["scale"], states[1].meta["scale"], rtol=1e-6)


def test_evaluation_is_that_of_images_in_memory(both):
    streamed, resident = both
    meta = {"scale": jnp.ones(3)}
    evaluate = jax.jit(make_evaluate(quadratic, PLAIN, tasks_at_once=2))
    expected = evaluate(meta, class_store(resident), KEY, jnp.arange(7))
    evaluate = make_evaluate(quadratic, streaming.sampler(PLAIN), by_task=BY_TASK)
    evaluate = jax.jit(over_episodes(task_mesh(), evaluate, by_task=BY_TASK))
    chunks = [range(3), range(3, 6), [6]]
    with streaming.numbered_pixels(PLAIN, streamed, key=KEY, chunks=chunks, workers=0) as pixels:
        scores = [
            evaluate(meta, Streamed(class_store(streamed), raw), KEY, jnp.array(chunk))
            for chunk, raw in zip(chunks, pixels, strict=True)
        ]
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *scores)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), scores, dict(expected))


def test_arrays_are_placed_before_they_are_needed():
    placed = []

    def place(array):
        placed.append(int(array))
        return -array

    given = streaming.ahead(map(np.array, range(5)), place, size=2)
    assert next(given) == 0 and placed == [0, 1, 2]
    assert next(given) == -1 and placed == [0, 1, 2, 3]
    assert [int(array) for array in given] == [-2, -3, -4]
    assert [int(array) for array in streaming.ahead(map(np.array, range(2)), place)] == [0, -1]


def test_keys_that_draw_otherwise_elsewhere_are_refused(both):
    with pytest.raises(ValueError, match="of kind rbg, and images on disk need threefry2x32"):
        streaming.training_pixels(
            PLAIN, both[0], key=jax.random.key(0, impl="rbg"), steps=range(1), tasks=[0]
        )


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_store_without_pixels_raises_an_error(both, name):
    with pytest.raises(
        ValueError, match="The store holds no pixels, because its images stay on disk"
    ):
        SAMPLERS[name](class_store(both[0]), KEY)


def test_a_broken_image_is_named_by_workers_too(tmp_path, monkeypatch):
    pytest.importorskip("grain")
    monkeypatch.setenv("METAJAX_CACHE_DIR", str(tmp_path / "cache"))
    for name in "abc":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(2):
            file = tmp_path / "pictures" / name / f"{index}.png"
            Image.new("RGB", (8, 8), (index, 0, 0)).save(file)
    images = sources.load(f"folder:{tmp_path / 'pictures'}", resident="never").train
    images.source.encoded(images.order)[0][1].write_bytes(b"nothing")
    sampler = EpisodeSampler(ways=1, shots=1, queries=1)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"/1\.png is not a readable image"):
            read(sampler, images, range(2), workers=workers)


def test_real_episodes_are_those_of_images_in_memory():
    # One data set: that images on disk are those in memory is tested of both in test_streamed.py.
    name = "omniglot"
    if not (DATA_DIR and Path(DATA_DIR, name).is_dir()):
        pytest.skip(f"METAJAX_DATA_DIR holds no {name}")
    pytest.importorskip("grain")
    streamed, resident = (
        sources.load(name, data_dir=DATA_DIR, resident=resident).train
        for resident in ("never", "always")
    )
    sampler = EpisodeSampler(ways=20, shots=1, queries=5, rotations=True, augment=AUGMENT)
    steps = range(1000, 1002)
    pixels = read(sampler, streamed, steps, workers=1)
    assert_same_episodes(sampler, streamed, resident, pixels, steps)

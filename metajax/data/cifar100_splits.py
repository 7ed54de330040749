"""The training, validation and test classes of the two few-shot benchmarks on CIFAR-100.

`CIFAR_FS` has 64 / 16 / 20 classes (Bertinetto et al., 2019, https://arxiv.org/abs/1805.08136);
`FC100` has 60 / 20 / 20, split by superclass, so that no test class resembles a training class
(Oreshkin et al., 2018, https://arxiv.org/abs/1805.10123).
"""

from collections.abc import Sequence

SUPERCLASSES: dict[str, tuple[str, ...]] = {
    superclass: tuple(classes.split())
    for superclass, classes in {
        "aquatic_mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food_containers": "bottle bowl can cup plate",
        "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
        "household_electrical_devices": "clock keyboard lamp telephone television",
        "household_furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large_carnivores": "bear leopard lion tiger wolf",
        "large_man-made_outdoor_things": "bridge castle house road skyscraper",
        "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
        "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium_mammals": "fox porcupine possum raccoon skunk",
        "non-insect_invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small_mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles_1": "bicycle bus motorcycle pickup_truck train",
        "vehicles_2": "lawn_mower rocket streetcar tank tractor",
    }.items()
}
"""The five classes of each superclass; superclasses in the order of the data set."""

_CIFAR_FS_VALID = (
    "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter "
    "sea shark television tractor"
)
_CIFAR_FS_TEST = (
    "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail "
    "sweet_pepper table telephone wardrobe whale woman worm"
)
_FC100_VALID = (
    "large_carnivores",
    "large_omnivores_and_herbivores",
    "non-insect_invertebrates",
    "small_mammals",
)
_FC100_TEST = ("aquatic_mammals", "insects", "medium_mammals", "people")

_CLASSES = sorted(name for classes in SUPERCLASSES.values() for name in classes)


def _split(valid: Sequence[str], test: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Makes a split whose training classes are all others."""
    held_out = {*valid, *test}
    train = tuple(name for name in _CLASSES if name not in held_out)
    return {"train": train, "valid": tuple(valid), "test": tuple(test)}


def _members(superclasses: tuple[str, ...]) -> list[str]:
    """Lists the classes of superclasses."""
    return [name for superclass in superclasses for name in SUPERCLASSES[superclass]]


CIFAR_FS: dict[str, tuple[str, ...]] = _split(_CIFAR_FS_VALID.split(), _CIFAR_FS_TEST.split())
"""Class names by split."""
FC100: dict[str, tuple[str, ...]] = _split(_members(_FC100_VALID), _members(_FC100_TEST))
"""Class names by split."""

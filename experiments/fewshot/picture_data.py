"""Pictures as the vectors of a frozen encoder, in the form in which rows of tables are learned."""

import hashlib
from collections.abc import Callable

import numpy as np
from tqdm import tqdm

from metajax.data.features import pictures
from metajax.data.sources import Splits
from metajax.data.streamed import Images, StreamedImages
from metajax.deploy import EncodedForm
from metajax.deploy.encoded import KIND
from metajax.episodes.rows import Rows
from metajax.errors import DataError
from metajax.types import Array, Tree

from ..flags.settings import UsageError
from ..setup.images import check_source, load_images
from ..setup.tables import SPLITS
from .options import FewshotPlan
from .picture_options import EncoderOptions
from .row_data import RowData


def load_encoded(plan: FewshotPlan, *, min_classes: int) -> RowData:
    """Reads the pictures of a run, and makes their vectors or finds them in the cache.

    Args:
      plan: The run.
      min_classes: Fewest classes of a split, where a random one may choose.

    Returns:
      The data.

    Raises:
      DataError: If pictures or the encoder are missing or broken.
      UsageError: If options do not go together.
    """
    encoder = _encoder(plan.encoder)
    check_source(plan.data, None)
    images = load_images(plan.data, None, min_classes=min_classes)
    splits = {name: getattr(images, name) for name in SPLITS}
    stores = {name: _store(name, split, encoder) for name, split in splits.items()}
    return RowData(
        stores=stores,
        unknown=None,
        within=False,
        about={KIND: {}},
        flat=_flat,
        parted=(),
        compared=f"vectors of {encoder.name}",
        form=_form(plan, images, encoder),
        description="; ".join([images.description, *images.notes]),
        fingerprint=".".join(_fingerprint(split, encoder) for split in splits.values()),
        noun="images",
    )


def _encoder(options: EncoderOptions) -> pictures.PictureEncoder:
    """Reads the encoder; raises UsageError if it cannot read pictures of that size."""
    try:
        if options.encoder_dir:
            return pictures.load_picture_encoder(
                "dinov2", folder=options.encoder_dir, side=options.encoder_size
            )
        return pictures.load_picture_encoder(options.encoder, side=options.encoder_size)
    except DataError:
        raise
    except ValueError as error:
        raise UsageError(f"--encoder_size={options.encoder_size}: {error}") from error


def _store(name: str, split: Images, encoder: pictures.PictureEncoder) -> Rows:
    """Makes the store of the vectors of a split, whose classes are cached one by one."""
    read = _reader(split)
    ends = np.cumsum(split.counts)
    vectors = []
    with tqdm(total=split.num_images, unit="image", desc=f"encoding {name}", delay=2) as bar:
        for count, end in zip(split.counts, ends, strict=True):
            pixels = read(np.arange(end - count, end))
            vectors.append(pictures.picture_vectors(pixels, encoder))
            bar.update(len(pixels))
    return Rows.of_sorted({KIND: np.concatenate(vectors)}, np.asarray(split.counts))


def _reader(split: Images) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the function from the numbers of pictures to their pixels."""
    return split.read if isinstance(split, StreamedImages) else split.images.__getitem__


def _flat(features: Tree) -> Array:
    """Makes rows of numbers [B, D] of features."""
    return pictures.unit_vectors(features[KIND])


def _form(plan: FewshotPlan, images: Splits, encoder: pictures.PictureEncoder) -> EncodedForm:
    """Describes the pictures, and the encoder that reads them."""
    shape, plain = images.train.shape, (0.5,) * images.train.shape[-1]
    return EncodedForm(
        shape,
        plain,
        plain,
        *images.form,
        encoder=encoder.name,
        sha256=encoder.sha256,
        side=encoder.side,
        flat=plan.network.model == "mlp",
    )


def _fingerprint(split: Images, encoder: pictures.PictureEncoder) -> str:
    """Hashes the pictures of a split with what the encoder makes of them."""
    text = f"{split.fingerprint()} {encoder.sha256} {encoder.side}"
    return hashlib.sha256(text.encode()).hexdigest()

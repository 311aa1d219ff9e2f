"""Names of the networks with any normalizer, such as 'cnn10w64:group_norm:size=8' and 'unet16'."""

import dataclasses
import re

from experiments.models.signal_propagation.normalizers import Normalization
from experiments.models.signal_propagation.plain import SHAPES
from experiments.models.signal_propagation.residual import RESIDUALS

OPTIONS = ":NORMALIZER[:groups=N or :size=N]"
SYNTAX = f"NETWORKwWIDTH{OPTIONS}[:skip_init][:nonlinearity_on_residual]"
UNET_SYNTAX = f"unetWIDTH or unetWIDTH{OPTIONS}"


@dataclasses.dataclass(frozen=True)
class NormalizedName:
    """What a name says.

    Attributes:
      network: 'cnn10', 'cnn20' and 'uniform30' are the plain networks, 'resnetDEPTH' the residual ones;
        'unet' is the U-Net, which has BatchNorm if its name says nothing.
      width: features of the first layer.
      normalization: of every layer.
      residual: which of `RESIDUALS` a residual network has.
    """

    network: str
    width: int
    normalization: Normalization
    residual: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, name: str) -> "NormalizedName":
        """Reads a name of the form `SYNTAX` or `UNET_SYNTAX`.

        Raises:
          ValueError: it is no such name; the message has the valid choices.
        """
        network, *parts = name.split(":")
        found = re.fullmatch(r"(unet|(?:cnn10|cnn20|uniform30|resnet\d+)w)([1-9]\d*)", network)
        if found is not None and found[1] == "unet" and not parts:
            parts = ["batch_norm"]
        if found is None or not parts:
            raise ValueError(
                f"unknown model {name!r}; a model with a normalizer is named {SYNTAX}, "
                f"NETWORK one of {', '.join(SHAPES)}, resnetDEPTH, or {UNET_SYNTAX}"
            )
        normalizer, *options = parts
        groups: dict[str, int] = {}
        residual = set()
        for option in options:
            kind = option.split("=")[0]
            if [other.split("=")[0] for other in options].count(kind) > 1:
                raise ValueError(f"{name!r} gives {kind!r} more than once")
            if number := re.fullmatch(r"(groups|size)=(\d+)", option):
                groups[{"groups": "groups", "size": "group_size"}[number[1]]] = int(number[2])
            elif option in RESIDUALS and found[1].startswith("resnet"):
                residual.add(option)
            else:
                choices = ["groups=N", "size=N", *(RESIDUALS if found[1].startswith("resnet") else ())]
                raise ValueError(f"unknown option {option!r} of {name!r}; choose from {', '.join(choices)}")
        return cls(
            found[1].removesuffix("w"),
            int(found[2]),
            Normalization(normalizer, **groups),
            frozenset(residual),
        )

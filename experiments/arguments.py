"""Types of optional arguments, shown as `PATH` where the parser of the command line would write `{None}|PATH`."""

from pathlib import Path
from typing import Annotated

import tyro

OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]
OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
OptionalStr = Annotated[str | None, tyro.conf.arg(metavar="STR")]

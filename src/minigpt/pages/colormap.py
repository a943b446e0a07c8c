"""Colour maps of the pages and of the attention pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Dark violet to bright yellow, after matplotlib's "viridis" (Smith and van der Walt 2015, CC0,
# https://bids.github.io/colormap): its lightness rises monotonically, so it reads the same in grey and without
# colour vision.
_STOPS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"
# For differences and for effects of either sign, most of which are about zero: blue, white, red, after ColorBrewer's
# RdBu (Harrower and Brewer 2003, Apache 2.0, https://colorbrewer2.org), whose hues also differ for readers who confuse
# red and green.
_DIVERGING_STOPS = "053061 2166ac 4393c3 92c5de d1e5f0 ffffff fddbc7 f4a582 d6604d b2182b 67001f"


def _table(names: str, n: int = 256) -> npt.NDArray[np.uint8]:
    stops = np.array([list(bytes.fromhex(stop)) for stop in names.split()], dtype=np.float64)
    at = np.linspace(0, len(stops) - 1, n)
    channels = [np.interp(at, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


COLOURS: npt.NDArray[np.uint8] = _table(_STOPS)
"""(256, 3) RGB; row 0 is weight 0, row 255 is weight 1."""

DIVERGING_COLOURS: npt.NDArray[np.uint8] = _table(_DIVERGING_STOPS, n=255)
"""(255, 3) RGB; row 127 is 0 and white, row 0 is -1, row 254 is 1."""

DIFFERENCE_COLOURS: npt.NDArray[np.uint8] = np.vstack([DIVERGING_COLOURS[:1], DIVERGING_COLOURS])
"""(256, 3) RGB; row 128 is 0 and white, row 1 is -1, row 255 is 1. Levels of a byte have no row 0."""

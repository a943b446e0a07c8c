"""Student's t: intervals of a mean over few values."""

from __future__ import annotations

import statistics

_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""0.975 quantiles of Student's t for 1 to 10 degrees of freedom."""


def student_t(degrees: int) -> float:
    """The 0.975 quantile of Student's t, within 0.001."""
    if degrees <= len(_T):
        return _T[degrees - 1]
    z, n = statistics.NormalDist().inv_cdf(0.975), degrees
    terms = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + sum(term / n**power for power, term in enumerate(terms, 1))  # Cornish-Fisher expansion

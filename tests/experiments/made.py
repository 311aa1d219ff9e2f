"""Values that records can hold, for tests that try many."""

import hypothesis.strategies as st

losses = st.floats(0, width=32, allow_nan=False, allow_infinity=False)
shares = st.floats(0, 1)
# All fields of `EpochMetrics` but the first.
epoch_values = st.tuples(losses, shares, losses, shares, st.integers(0, 10**6), st.floats(0, 1e6))

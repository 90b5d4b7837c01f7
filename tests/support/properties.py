"""How property tests draw their examples: ``@property_test`` above ``@given(...)``."""

import os

from hypothesis import HealthCheck, settings

# The same examples each time, so that a failure repeats, and no limit of time: by default, an
# example that takes 200 ms fails, as on a machine with more work than cores. More examples:
# ``settings(property_test, max_examples=100)``.
property_test = settings(
    max_examples=12 if os.environ.get("TRITON_INTERPRET") == "1" else 40,  # 30 ms a launch
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

"""The guide's alert rules under a real Prometheus, with real agents and replicas.

In a tenth of the time.
"""

import shutil

import pytest

from alerts import SITUATIONS, trial

SCALE = 10
# The waits of a sidecar that is refused do not get shorter with its interval: one alone is too
# seldom heard of then.
UNSCALED = "one sidecar's token refused"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_each_rule_fires_in_its_situation_and_none_before() -> None:
    scaled = [name for name in SITUATIONS if name != UNSCALED]
    assert trial(SCALE, scaled) == {name: (set(), SITUATIONS[name][1]) for name in scaled}

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.controller.memory.telling import Logs


@pytest.fixture
def logs() -> Iterator[Logs]:
    """All that is logged."""
    with capture_logs() as captured:
        yield captured

"""What the clock of a training run counts."""

import pytest

from tirkit.training import callbacks
from tirkit.training.callbacks import Clock


def test_what_is_measured_in_between_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    clock = Clock()
    with clock.paused():
        now[0] = 103.0
    now[0] = 105.0
    assert clock.seconds == 2.0  # from 103 to 105
    with clock.paused():
        now[0] = 115.0
        assert clock.seconds == 2.0
    now[0] = 116.0
    assert clock.seconds == 3.0

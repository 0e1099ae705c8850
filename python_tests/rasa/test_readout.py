from __future__ import annotations

import pytest

from franca_fast.rasa import FitSettings
from franca_fast.rasa.readout import Readout
from franca_fast.rasa.settings import READOUTS
from python_tests.rasa.tokens import planted


@pytest.mark.parametrize("readout", READOUTS)
def test_shares_of_the_work_add_up(readout):
    tokens, _ = planted()
    settings, done = FitSettings(readout=readout, epochs=3, batch_size=30), []
    Readout(tokens, settings).find(None, 0, done.append)
    assert sum(done) == pytest.approx(1)

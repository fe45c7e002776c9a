"""What long computations say, and that short ones say nothing."""

import io

from transformers.utils import logging

from kemem.progress import Progress, quiet_transformers


def test_a_short_run_says_nothing():
    stream = io.StringIO()
    say = Progress("training", stream=stream)
    for step in range(1, 4):
        say(step, 3, "loss 1.0")
    assert stream.getvalue() == "" and say.bar is None


def test_a_long_run_says_where_it_is_and_leaves_nothing_behind():
    stream = io.StringIO()
    stream.isatty = lambda: True
    say = Progress("training", patience=0.0, stream=stream)
    say(1, 4, "loss 2.000")
    say.bar.mininterval = 0.0
    say(3, 4, "loss 1.500")
    shown = stream.getvalue()
    assert "training" in shown and "75 %" in shown and "3/4" in shown and "loss 1.500" in shown
    say(4, 4, "loss 1.000")
    assert stream.getvalue().rsplit("\r", 1)[-1].strip() == ""
    say(1, 2, "again")  # a second run with the same reporter begins anew
    assert say.bar is not None and say.bar.n == 1
    say.close()


def test_transformers_is_quiet_inside_and_as_before_outside():
    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled() and logging.get_verbosity() == logging.ERROR
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before

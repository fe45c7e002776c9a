"""The table of ratios: what is held against a bound comes first, and a missed one is said."""

import sys
from types import ModuleType, SimpleNamespace

from benchmarks import __main__ as bench
from benchmarks.ratio import Ratio

FREE = Ratio("for information", (3.0,), None, "at most")
HELD = Ratio("fast enough", (1.0, 2.0, 9.0), 1.5, "at least")
MISSED = Ratio("too slow", (1.2,), 1.1, "at most")


def test_a_ratio_is_the_median_of_its_repeats_against_its_bound():
    assert (HELD.value, HELD.holds, MISSED.holds, FREE.holds) == (2.0, True, False, True)


def test_the_table_has_bounds_first_and_says_what_is_missed():
    head, rule, *lines = bench.table([("a", FREE), ("a", HELD), ("b", MISSED)]).splitlines()
    assert head.split() == ["of", "ratio", "median", "range", "bound"] and set(rule) <= {"-", " "}
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert cells == [
        ["a", "fast enough", "2", "1 to 9", "at least 1.5", "holds"],
        ["b", "too slow", "1.2", "at most 1.1", "MISSED"],
        ["a", "for information", "3", "none"],
    ]


def test_the_command_ends_with_one_where_a_bound_is_missed(monkeypatch, capsys):
    for name, of, status in (("held", HELD, 0), ("missed", MISSED, 1)):
        module = ModuleType(f"benchmarks.{name}")
        module.ratios = lambda *, repeats, device, of=of: iter([of])
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(bench.pkgutil, "iter_modules", lambda _, name=name: [SimpleNamespace(name=name)])
        monkeypatch.setattr(sys, "argv", ["benchmarks"])
        assert bench.main() == status
        assert capsys.readouterr().out.count(of.name) == 2  # as it came, and in the table

"""Random and mutated input: everything gets one clear error, and nothing ends.

    python -m tests.fuzz bundles --count 20000 --seed 1
    python -m tests.fuzz bundles --seed 1 --only 1234      # one case again, with its traceback

`harness` runs cases in a child process with limited memory and time, `mutate` makes them. Every
other module is a target; `tests/fuzz/test_fuzz.py` runs a few cases of each.
"""

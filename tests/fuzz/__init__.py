"""Fuzzing: random and mutated input gives one clear error, and no process ends.

    python -m tests.fuzz bundles --count 20000 --seed 1
    python -m tests.fuzz bundles --seed 1 --only 1234      # repeat one case, with its traceback

`harness` runs cases in a child process with limited memory and time, `mutate` mutates the input.
`bundles`, `control`, `frames` and the modules of file formats are targets.
`tests/fuzz/test_fuzz.py` runs a few cases of each.
"""

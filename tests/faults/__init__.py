"""A campaign of faults against real processes: `python -m tests.faults` (or `make faults`).

fault.py        a fault, and what one try of it gave
sender.py       the rig's sender, a process that logs what it sends before it sends it
checker.py      subscribes to every frame and holds it against the senders' logs
rig.py          the processes of one fault: sender, daemon or server, checker
orders.py       what REST accepted, compared with what the daemon does afterwards
decoders.py     bundles that hang, raise, or give velocities that nobody can want
network.py      a link that can be cut, a clock that can be moved, a disk that can be filled
of_*.py         the faults, a few lines each
campaign.py     tries them at random moments, goes on where it was cut short
page.py         docs/RELIABILITY.md and docs/reliability.json
"""

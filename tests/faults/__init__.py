"""A campaign of faults against real processes: `python -m tests.faults` (or `make faults`).

fault.py        a fault, and the result of one try
sender.py       the sender, a process that logs its data before sending them
checker.py      subscribes to all frames and checks them against the senders' logs
rig.py          the processes of one fault: sender, daemon or server, checker
orders.py       orders accepted over REST, compared with the daemon's state afterwards
decoders.py     bundles that hang, raise, or give absurd velocities
network.py      a link that can be cut, a clock that can be moved, a disk that can be filled
of_*.py         the faults, a few lines each
campaign.py     tries the faults at random moments; continues after an interruption
page.py         writes docs/RELIABILITY.md and docs/reliability.json
"""

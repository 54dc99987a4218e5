"""A closed loop on this machine: task, participant, score."""

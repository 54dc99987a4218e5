"""LSL streams in: found, opened, read on this host's clock, admitted."""

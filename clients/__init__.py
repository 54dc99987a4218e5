"""What a rig uses: the cursor subscriber, the terminal views, and the `volition` command."""

"""`medusa-dist bench`: the speed-up of speculation on this machine."""

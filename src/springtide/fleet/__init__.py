"""The control loop: observe, decide, act; and the journal of what it saw and decided."""

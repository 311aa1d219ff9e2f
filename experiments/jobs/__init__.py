"""Many runs and measurements: one pool of workers, and what the terminal shows of them."""

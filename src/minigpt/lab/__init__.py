"""Programs about runs: compare, doctor, prove_resume."""

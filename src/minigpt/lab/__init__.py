"""Programs about runs: compare recipes, check a config on this machine (doctor), prove that resume is exact."""

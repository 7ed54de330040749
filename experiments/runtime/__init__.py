"""What a run is made of while it runs: processes, devices, files, loops."""

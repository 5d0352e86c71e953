"""What a run is: the configuration, its files and its help."""

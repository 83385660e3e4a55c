"""Small real rslearn datasets, by rslearn's own writers: for the demo and tests, users' too."""

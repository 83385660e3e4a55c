"""Where an eval root is: a folder of this machine, or a bucket that a folder mirrors."""

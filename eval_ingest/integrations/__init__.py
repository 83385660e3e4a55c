"""Other people's code: what their trainers and libraries want of our datasets."""

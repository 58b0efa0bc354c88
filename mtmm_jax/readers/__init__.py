"""What a file may cost and what a manifest's cell may hold; the floor below kinds of labels."""

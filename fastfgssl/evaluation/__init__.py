"""What a pretrained network has learned: view matching, kNN, linear probe."""

"""What makes several processes one run: how they are born, what they tell each other beside tensors, signals."""

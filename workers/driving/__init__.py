"""What a driver does with its run: plans it, clears its way, hears what is asked of it, judges when it ends."""

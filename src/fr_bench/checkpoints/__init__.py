"""What a run needs to go on: a module as plain data, the files, and the thread that writes them."""

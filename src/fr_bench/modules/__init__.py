"""One module of the network: its blocks, its optimizer, and the passes that methods are written in."""

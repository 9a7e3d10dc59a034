"""Where in a scan the brain lies, and the training of the network that knows: see :mod:`.find`."""

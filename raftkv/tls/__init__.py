"""TLS: what is in the files (`credentials.py`) and who is let in by it (`port.py`)."""

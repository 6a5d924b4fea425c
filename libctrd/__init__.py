"""libctrd: run containers from Python. Every byte of output and every exit status, always."""
